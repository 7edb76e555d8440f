"""BertAdam, the slanted triangular schedule and layer-wise learning rates, PyTorch."""
import math
import re

import torch

from common.command_line import UserError

NO_DECAY = re.compile(r"(^|\.)(bias\w*|LayerNorm\.\w+)$")  # bias\w*: an LSTM's bias_ih_l0, ...


def slanted_triangular(progress, warmup):
    """The authors' schedule (paper, section 5.2): rises linearly to 1 during warm-up, then is 1 - progress, so that it
    steps from 1 to 1 - warmup. Past the end it is 0, where the authors' goes negative."""
    return progress / warmup if progress < warmup else max(0.0, 1.0 - progress)


def linear(progress, warmup):
    """As slanted_triangular, but without the step: falls from 1 at the end of warm-up to 0 (transformers' `linear`)."""
    return progress / warmup if progress < warmup else max(0.0, (1.0 - progress) / (1.0 - warmup))


def constant(progress, warmup):
    """Rises linearly to 1 during warm-up and stays there."""
    return progress / warmup if progress < warmup else 1.0


# --schedule: the factor of every rate at `progress` (updates done / all updates), `warmup` being a proportion below 1
SCHEDULES = {"slanted_triangular": slanted_triangular, "linear": linear, "constant": constant}


# --clip_grad: norms [tensors] of the gradients -> what each is clipped by, its own (the paper's authors), or what all are
CLIPPINGS = {"tensor": lambda norms: norms, "global": torch.linalg.vector_norm}


def adam(group, params, grads, averages, squares):
    """Adam's update of a group's parameters, and of their moments, from their gradients: one pass over memory, by the kernel of
    torch.optim.AdamW(fused=True). After infinitely many updates there is no bias to correct."""
    updates = torch.full((), group["updates"] if group["bias_correction"] else math.inf, device=params[0].device)
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(params, grads, averages, squares, [], [updates] * len(params), lr=group["lr"], beta1=beta1, beta2=beta2,
                        weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False)


class BertAdam(torch.optim.Optimizer):
    """Adam as BERT's authors use it: no bias correction, decoupled weight decay, gradients clipped to norm 1.

    params: parameters or groups, each with its own `lr` and `weight_decay`. max_grad_norm: gradients are clipped to this
    norm; 0: not at all. clip_grad: a name of CLIPPINGS. bias_correction: Adam's own (Kingma and Ba 2015). `grad_norm` is the
    norm of the whole gradient of the last update before clipping, a tensor on the device.
    """
    # torch's methods without their wrapper, which at its first call imports the machinery of torch.compile: 1.1 s of the
    # start of every command. The wrapper only keeps the method out of compiled code.
    add_param_group, zero_grad, state_dict, load_state_dict = (
        getattr(torch.optim.Optimizer, method).__wrapped__
        for method in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"))

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01, max_grad_norm=1.0, clip_grad="tensor",
                 bias_correction=False):
        if clip_grad not in CLIPPINGS:
            raise ValueError(f"clip_grad is one of {', '.join(CLIPPINGS)}, not {clip_grad!r}")
        self.max_grad_norm, self.clip_norms, self.grad_norm = max_grad_norm, CLIPPINGS[clip_grad], None
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
                                      bias_correction=bias_correction, updates=0))

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every parameter that has a gradient. closure: as torch's; its loss is returned."""
        loss = torch.enable_grad()(closure)() if closure else None
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(grads))
        self.grad_norm = torch.linalg.vector_norm(norms)
        if self.max_grad_norm > 0:
            # torch.nn.utils.clip_grad_norm_, which the authors call for each tensor, adds the same 1e-6
            factors = torch.clamp(self.max_grad_norm / (self.clip_norms(norms) + 1e-6), max=1.0)
            torch._foreach_mul_(grads, list(factors) if factors.dim() else factors)
        for group in self.param_groups:
            group["updates"] += 1  # of the group, not of a parameter: as if late ones had had gradients of 0
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self.update(group, params)
        return loss

    def update(self, group, params):
        """Updates those parameters of a group that have a gradient."""
        for p in params:
            if not self.state[p]:  # a task that was not drawn yet has no gradients
                self.state[p] |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        averages, squares = ([self.state[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq"))
        adam(group, params, [p.grad for p in params], averages, squares)


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
    """Groups of the model's trainable parameters for BertAdam, each with a `name` and its parameters' names, `param_names`.

    learning_rate: of all that is in no layer (classifier, pooler, and the embeddings unless embeddings_rate is given).
    rates: one for each encoder layer, or None for learning_rate everywhere. Biases and LayerNorm are not decayed.
    """
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, decays = re.search(r"\bbert\.encoder\.layer\.(\d+)\.", name), not NO_DECAY.search(name)
        if rates is None:
            part, rate = "all", learning_rate
        elif layer:
            part, rate = f"layer {layer[1]}", rates[int(layer[1])]
        elif re.search(r"\bbert\.embeddings\.", name):
            part, rate = "embeddings", learning_rate if embeddings_rate is None else embeddings_rate
        else:
            part, rate = "pooler, classifier", learning_rate
        key = part + ("" if decays else ", biases and LayerNorm")
        group = groups.setdefault(key, dict(name=key, lr=rate, weight_decay=weight_decay if decays else 0.0,
                                            params=[], param_names=[]))
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(groups.values())


def describe_groups(groups):
    """The table of parameter groups that a run prints, a line each."""
    return "\n".join([f"{'parameters':<44} {'tensors':>7} {'values':>12} {'rate':>10} {'decay':>6}", *(
        f"{group['name']:<44} {len(group['params']):>7} {sum(p.numel() for p in group['params']):>12,} "
        f"{group.get('initial_lr', group['lr']):>10.3g} {group['weight_decay']:>6.3g}" for group in groups)])
