"""BertAdam, the slanted triangular schedule and layer-wise learning rates, PyTorch."""
import math
import re

import torch

from command_line import UserError

NO_DECAY = re.compile(r"(^|\.)(bias\w*|LayerNorm\.\w+)$")


def slanted_triangular(progress, warmup):
    """The rate's factor at `progress` (updates done / all updates), with `warmup` a proportion (paper, section 5.2).

    Rises linearly to 1 during warm-up, then is 1 - progress, the authors' curve: it steps from 1 to 1 - warmup. Past
    the end it is 0, where the authors' goes negative.
    """
    if progress < warmup:
        return progress / warmup
    return max(0.0, 1.0 - progress)


class BertAdam:
    """Adam as BERT's authors use it: no bias correction, decoupled weight decay, gradients clipped, a schedule inside.

    params: parameters or groups, each group with its own `lr` and `weight_decay`. lr: rate at the schedule's peak.
    t_total: updates of the whole run, or -1 for a constant rate. warmup: proportion of t_total. max_grad_norm: gradients
    are clipped to this norm, 0 or less: not at all. clip_grad: `tensor` clips each tensor by itself (the paper's
    authors'), `global` the whole gradient. bias_correction: Adam's own (Kingma and Ba 2015).

    It has what its loop needs of a torch.optim.Optimizer and is none: the constructor of one imports the machinery of
    torch.compile, which is a third of the time that a command takes to start.
    """

    def __init__(self, params, lr, warmup=0.1, t_total=-1, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01,
                 max_grad_norm=1.0, clip_grad="tensor", bias_correction=False):
        if clip_grad not in ("tensor", "global"):
            raise ValueError(f"clip_grad is 'tensor' or 'global', not {clip_grad!r}")
        self.warmup, self.t_total, self.betas, self.eps = warmup, t_total, betas, eps
        self.max_grad_norm, self.clip_grad, self.bias_correction = max_grad_norm, clip_grad, bias_correction
        self.updates = 0
        self.grad_norm = None  # of the whole gradient of the last update, before clipping: a tensor on the device
        params = list(params)
        groups = params if isinstance(params[0], dict) else [{"params": params}]
        self.param_groups = [{"lr": lr, "weight_decay": weight_decay} | group for group in groups]
        self.moments = {}  # parameter that has had a gradient -> (running mean of the gradient, of its square)

    def parameters(self):
        """All parameters, in the order of the groups."""
        return [p for group in self.param_groups for p in group["params"]]

    def factor(self):
        """What the next update's rates are multiplied with."""
        return 1.0 if self.t_total < 0 else slanted_triangular(self.updates / self.t_total, self.warmup)

    @torch.no_grad()
    def step(self):
        """One update of every parameter that has a gradient."""
        grads = [p.grad for p in self.parameters() if p.grad is not None]
        norms = torch._foreach_norm(grads)
        self.grad_norm = torch.linalg.vector_norm(torch.stack(norms))
        if self.max_grad_norm > 0:
            clip(grads, norms if self.clip_grad == "tensor" else [self.grad_norm] * len(grads), self.max_grad_norm)
        beta1, beta2 = self.betas
        correction1 = 1 - beta1 ** (self.updates + 1) if self.bias_correction else 1.0
        correction2 = math.sqrt(1 - beta2 ** (self.updates + 1)) if self.bias_correction else 1.0
        factor = self.factor()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if p not in self.moments:
                    self.moments[p] = torch.zeros_like(p), torch.zeros_like(p)
            grads = [p.grad for p in params]
            averages, squares = map(list, zip(*(self.moments[p] for p in params)))
            rate = group["lr"] * factor
            torch._foreach_lerp_(averages, grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
            denominators = torch._foreach_sqrt(squares)
            torch._foreach_add_(denominators, self.eps * correction2)
            torch._foreach_mul_(params, 1 - rate * group["weight_decay"])
            torch._foreach_addcdiv_(params, averages, denominators, -rate * correction2 / correction1)
        self.updates += 1

    def zero_grad(self):
        for p in self.parameters():
            p.grad = None

    def state_dict(self):
        """What `load_state_dict` takes back: the updates done, and the moments by their parameter's position."""
        return {"updates": self.updates, "moments": {position: self.moments[p] for position, p in
                                                     enumerate(self.parameters()) if p in self.moments}}

    def load_state_dict(self, state):
        self.updates, parameters = state["updates"], self.parameters()
        self.moments = {parameters[position]: tuple(moment.to(parameters[position].device, copy=True) for moment in moments)
                        for position, moments in state["moments"].items()}


def clip(grads, norms, max_norm):
    """Scales each gradient in place by what takes its norm in `norms` down to max_norm, where it is above."""
    # torch.nn.utils.clip_grad_norm_, which the authors call for each tensor, adds the same 1e-6
    torch._foreach_mul_(grads, [torch.clamp(max_norm / (norm + 1e-6), max=1.0) for norm in norms])


def layer_rates(num_layers, rates, decay):
    """The learning rate of each layer, the lowest first (paper, section 5.3.4).

    rates: one, that of the top layer, layer k - 1 learning at `decay` times the rate of layer k; or one for each layer.
    """
    if len(rates) == 1:
        return [rates[0] * decay ** (num_layers - 1 - layer) for layer in range(num_layers)]
    if len(rates) != num_layers:
        raise UserError(f"--layer_learning_rate has {len(rates)} rates, the model has {num_layers} layers: "
                        "give one (the top layer's) or one for each layer, the lowest first")
    return list(rates)


def parameter_groups(model, learning_rate, rates=None, embeddings_rate=None, weight_decay=0.01):
    """Groups of the model's trainable parameters for BertAdam.

    learning_rate: of all that is in no layer (classifier, pooler, and the embeddings unless embeddings_rate is given).
    rates: one for each encoder layer, or None for learning_rate everywhere. Biases and LayerNorm are not decayed. Each
    group also has a `name` and its parameters' names, `param_names`.
    """
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = re.search(r"\bbert\.encoder\.layer\.(\d+)\.", name)
        part, rate = "all", learning_rate
        if rates is not None:
            if layer:
                part, rate = f"layer {layer[1]}", rates[int(layer[1])]
            elif re.search(r"\bbert\.embeddings\.", name):
                part, rate = "embeddings", learning_rate if embeddings_rate is None else embeddings_rate
            else:
                part, rate = "pooler, classifier", learning_rate
        decays = not NO_DECAY.search(name)
        key = part + ("" if decays else ", biases and LayerNorm")
        group = groups.setdefault(key, dict(name=key, lr=rate, weight_decay=weight_decay if decays else 0.0,
                                            params=[], param_names=[]))
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(groups.values())


def describe_groups(groups):
    """The table of parameter groups that a run prints, a line each."""
    lines = [f"{'parameters':<44} {'tensors':>7} {'values':>12} {'rate':>10} {'decay':>6}"]
    for group in groups:
        lines.append(f"{group['name']:<44} {len(group['params']):>7} {sum(p.numel() for p in group['params']):>12,} "
                     f"{group['lr']:>10.3g} {group['weight_decay']:>6.3g}")
    return "\n".join(lines)
