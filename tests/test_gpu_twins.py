"""What runs on a GPU alone, as far as a CPU can show it: the packed batch in flash attention (a stand-in for the kernel, see
flash.py), batches ahead of the computation, the fused update, and that nothing in an update waits for the device.
tests/test_gpu.py holds the same against a GPU's own kernels."""
import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import modeling
import optimization
from common.configuration import BertConfig
from conftest import ROOT
from finetuning import attention, data, evaluation, training
from finetuning.gpu import moved_ahead
from flash import flash_on_cpu  # noqa: F401
from modeling import BertForSequenceClassification
from runs import SINGLE, assert_equal_weights, call, losses_of, train_flags

CPU = torch.device("cpu")


def make_dataset(num_documents=13, seed=0):
    """Documents of 1 to 3 sequences of 1 to 20 tokens."""
    generator = np.random.default_rng(seed)
    document_offsets = np.concatenate([[0], np.cumsum(generator.integers(1, 4, num_documents))])
    offsets = np.concatenate([[0], np.cumsum(generator.integers(1, 21, document_offsets[-1]))])
    return data.Dataset(generator.integers(1, 53, offsets[-1]).astype(np.int32), offsets, document_offsets,
                        generator.integers(0, 3, num_documents))


def make_model(dropout=0.0, seed=0, **more):
    """A random classifier whose heads are of a size that flash attention takes."""
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=53, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                        max_position_embeddings=24, initializer_range=0.3, hidden_dropout_prob=dropout,
                        attention_probs_dropout_prob=dropout)
    return BertForSequenceClassification(config, 3, **({"layers": [1], "hierarchical": "mean"} | more))


def use(model, backend):
    for layer in model.bert.encoder.layer:
        layer.attention.self.backend = backend
    return model


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = F.cross_entropy(model(batch), batch.labels)
    loss.backward()
    return [loss.detach(), *(param.grad for param in model.parameters() if param.grad is not None)]


# Flash attention

@pytest.mark.parametrize("dropout, tolerance", [(0.0, 1e-5), (0.4, 0.25)])
def test_varlen_attention_is_that_of_a_jagged_nested_tensor(flash_on_cpu, dropout, tolerance):
    """The public way to the same kernel, in values and gradients; with dropout in the mean of 400 draws."""
    generator = torch.Generator().manual_seed(0)
    batch = make_dataset(4).batch(range(4))
    query, key, value, upstream = (torch.randn(len(batch.input_ids), 2, 8, generator=generator) for _ in range(4))

    def jagged(q, k, v):
        q, k, v = (torch.nested.nested_tensor_from_jagged(x, batch.cu_seqlens).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).values()

    def results(function):
        inputs = [x.clone().requires_grad_() for x in (query, key, value)]
        output = function(*inputs)
        output.backward(upstream)
        return torch.cat([output.detach(), *(x.grad for x in inputs)])

    draws = 400 if dropout else 1
    torch.manual_seed(0)
    ours, theirs = (sum(results(function) for _ in range(draws)) / draws for function in (
        lambda *qkv: attention.attention(*qkv, batch, dropout, "varlen"), jagged))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    assert (ours - theirs).std() < tolerance / 4


@pytest.mark.parametrize("sequences_at_once", [None, 3])
def test_the_model_with_varlen_attention_has_the_losses_and_gradients_of_the_others(flash_on_cpu, sequences_at_once):
    """To 1e-5 in float32; in parts of a batch, too, which compute their own starts and longest sequence."""
    batch = make_dataset().batch(range(13))
    model = make_model().train()
    model.sequences_at_once = sequences_at_once
    per_sequence, varlen = (loss_and_gradients(use(model, backend), batch) for backend in ("per_sequence", "varlen"))
    for ours, theirs in zip(varlen, per_sequence, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_is_computed_again_in_parts_shows_checkpoint_its_device(monkeypatch):
    """By a tensor among the arguments; else torch would not keep the state of the GPU's dropout."""
    model, shown, checkpoint = make_model(0.1).train(), [], modeling.checkpoint

    def look(function, *arguments, **how):
        shown.append(any(isinstance(argument, torch.Tensor) for argument in arguments))
        return checkpoint(function, *arguments, **how)
    monkeypatch.setattr(modeling, "checkpoint", look)
    model.sequences_at_once, model.bert.encoder.gradient_checkpointing = 5, True
    model(make_dataset().batch(range(13))).sum().backward()
    assert len(shown) > 4 and all(shown)


def test_projections_together_are_each_to_1e_5_and_flash_attention_takes_them_as_they_lie(flash_on_cpu):
    generator = torch.Generator().manual_seed(0)
    batch, model = make_dataset().batch(range(13)), make_model()
    layers = [getattr(model.bert.encoder.layer[0].attention.self, name) for name in ("query", "key", "value")]
    hidden, upstream = (torch.randn(len(batch.input_ids), 16, generator=generator) for _ in range(2))

    def results(project):
        model.zero_grad()
        leaf = hidden.clone().requires_grad_()
        query, key, value = (x.unflatten(-1, (2, 8)) for x in project(leaf))
        output = attention.attention(query, key, value, batch, 0.0, "varlen").flatten(-2)
        output.backward(upstream)
        return [output.detach(), leaf.grad, *(param.grad.clone() for layer in layers for param in layer.parameters())]
    for ours, theirs in zip(results(lambda leaf: modeling.project_together(layers, leaf)),
                            results(lambda leaf: [layer(leaf) for layer in layers]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype, size, capability, backend", [
    (torch.bfloat16, 64, (8, 0), "varlen"), (torch.float16, 8, (9, 0), "varlen"), (torch.bfloat16, 256, (12, 0), "varlen"),
    (torch.float32, 64, (9, 0), "padded"), (torch.bfloat16, 20, (9, 0), "padded"), (torch.bfloat16, 264, (9, 0), "padded"),
    (torch.bfloat16, 64, (7, 5), "padded")])
def test_a_gpu_has_flash_attention_where_its_kernel_runs(monkeypatch, dtype, size, capability, backend):
    class OnGpu:  # what attention looks at
        is_cuda, device = True, torch.device("cuda")

        def __init__(self, dtype, size):
            self.dtype, self.shape = dtype, (5, 2, size)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention, "ATTENTIONS", {name: lambda *_, name=name: name for name in attention.ATTENTIONS})
    assert attention.attention(OnGpu(dtype, size), None, None, None, 0.0) == backend


@pytest.mark.long
def test_a_compiled_layer_has_flash_attention_in_its_graph_and_is_compiled_once(flash_on_cpu, monkeypatch):
    """Batches of other lengths and other numbers of sequences meet no graph break and no new compilation."""
    monkeypatch.setattr(modeling, "has_flash", lambda device: True)
    monkeypatch.setattr(modeling, "ROWS", 1)  # only on a CPU are there rows of no token
    model, dataset = make_model().train(), make_dataset()
    batches = [dataset.batch(indices) for indices in (range(13), range(5), range(3, 12))]
    use(model, "varlen")
    with torch.autocast("cpu", torch.bfloat16):
        plain = [loss_and_gradients(model, batch) for batch in batches]
    use(model, None)
    model.bert.encoder.compile_layers()
    torch._dynamo.utils.counters.clear()
    graphs = []
    for batch, expected in zip(batches, plain):
        with torch.autocast("cpu", torch.bfloat16):
            for ours, theirs in zip(loss_and_gradients(model, batch), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1] <= 2 and not torch._dynamo.utils.counters["graph_break"]


# Nothing waits for the device

@pytest.mark.parametrize("more", [
    dict(layers=[1, 0], pooling_type="mean"), dict(pooling_type="max"), dict(layers=[-2]), dict(hierarchical="self_attention"),
    dict(classifier="bilstm_attention", lstm_hidden_size=8, attention_size=6, attention_hops=2)])
@pytest.mark.parametrize("clip_grad", ["tensor", "global"])
def test_an_update_reads_no_number_of_the_device(monkeypatch, more, clip_grad):
    """On the device `meta`, where tensors have no numbers: .item(), .tolist(), nonzero, indexing by a condition and whatever
    else makes the host wait for a GPU are errors."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which does not know `meta`
    batch = make_dataset().batch(range(13)).to("meta")
    model = use(make_model(0.1, **more).to("meta"), "varlen").train()
    model.sequences_at_once = 5
    optimizer = optimization.BertAdam(optimization.parameter_groups(model, 1e-3), 1e-3, clip_grad=clip_grad)
    for _ in range(2):
        logits = model(batch)
        loss = F.cross_entropy(logits, batch.labels, reduction="sum") / 13
        loss.backward()
        correct = (logits.detach().argmax(dim=1) == batch.labels).sum()
        optimizer.step()
        optimizer.zero_grad()
    assert correct.device.type == optimizer.grad_norm.device.type == "meta"
    assert optimizer.state.keys() == {param for param in model.parameters() if param.requires_grad}
    with pytest.raises(RuntimeError):
        correct.item()  # the device does what this test is about


# Batches ahead

def assert_equal(ours, theirs):
    for name in data.TENSORS:
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=0)
    assert (ours.lengths, ours.fractions, ours.longest) == (theirs.lengths, theirs.fractions, theirs.longest)


def test_a_cpu_gets_each_batch_when_it_is_asked_for():
    dataset, made = make_dataset(), []

    def batches():
        for index in range(4):
            made.append(index)
            yield dataset.batch([index, index + 5])
    for index, batch in enumerate(moved_ahead(batches(), CPU)):
        assert made == list(range(index + 1))
        assert_equal(batch, dataset.batch([index, index + 5]))
    assert index == 3


@pytest.fixture
def pretended(monkeypatch):
    """A CPU that passes for a GPU where moved_ahead looks: (its device, the list of what was asked of its streams)."""
    asked = []

    class Stream:
        def __init__(self, device=None):
            self.name = "side" if device else "main"

        def record_event(self):
            asked.append(f"{self.name} records")
            return "event"

        def wait_event(self, event):
            asked.append(f"{self.name} waits for {event}")

    main = Stream()
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.append(f"{threading.get_ident()} is on {device}"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: asked.append(f"kept for {stream.name}"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    plain = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *where, **how: plain(
        tensor, *("cpu" if isinstance(place, torch.device) else place for place in where), **how))
    return torch.device("cuda", 0), asked


def test_a_gpu_gets_the_next_batch_while_this_one_is_computed(pretended):
    """One ahead, not more, in their order; its stream waits for the copy, and each tensor is kept for it."""
    device, asked = pretended
    dataset, made, threads = make_dataset(), [threading.Event() for _ in range(7)], set()

    def batches():
        for index in range(5):
            threads.add(threading.current_thread())
            made[index].set()
            yield dataset.batch([index, index + 5])
    for index, batch in enumerate(moved_ahead(batches(), device)):
        assert index == 4 or made[index + 1].wait(60)
        assert not made[index + 2].is_set()
        assert_equal(batch, dataset.batch([index, index + 5]))
        assert batch.input_ids.untyped_storage().data_ptr() == batch.labels.untyped_storage().data_ptr()  # one copy
    assert index == 4 and threading.current_thread() not in threads
    assert asked[0] == f"{threads.pop().ident} is on cuda:0"
    assert asked.count("side records") == asked.count("main waits for event") == 5
    assert asked.count("kept for main") == 5 * (len(data.TENSORS) + 1)


def test_who_stops_in_the_middle_leaves_no_thread_and_an_error_arrives(pretended):
    device, _ = pretended
    dataset, before = make_dataset(), threading.active_count()
    batches = moved_ahead((dataset.batch([index]) for index in range(9)), device)
    next(batches)
    batches.close()
    assert threading.active_count() == before
    batches = moved_ahead((dataset.batch([index]) for index in (0, 99)), device)
    next(batches)
    with pytest.raises(IndexError):
        next(batches)
    assert threading.active_count() == before


def test_a_run_with_batches_ahead_is_the_run_without_to_the_bit(tiny, tmp_path, pretended, monkeypatch):
    """Training, evaluation and a run that is stopped and goes on."""
    flags = [*train_flags(tiny, tmp_path / "plain"), "--gradient_accumulation_steps", 2]
    call(SINGLE, *flags)
    device, asked = pretended
    assert not asked
    for module in (training, evaluation):
        monkeypatch.setattr(module, "moved_ahead", lambda batches, _: moved_ahead(batches, device))
    step, done = optimization.BertAdam.step, []

    def stopped(*arguments):
        done.append(step(*arguments))
        if len(done) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(optimization.BertAdam, "step", stopped)
    before, flags = threading.active_count(), [*flags, "--output_dir", tmp_path / "ahead"]
    with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
        call(SINGLE, *flags)
    assert threading.active_count() <= before
    call(SINGLE, *flags)
    assert losses_of(tmp_path / "ahead") == losses_of(tmp_path / "plain")
    assert_equal_weights(tmp_path / "ahead" / "last", tmp_path / "plain" / "last")
    assert asked.count("main waits for event") > 2 * 24


# The update

def plain_adam(group, params, grads, averages, squares):
    """Adam's update of a group's parameters, and of their moments, from their gradients."""
    beta1, beta2 = group["betas"]
    correction1 = 1 - beta1 ** group["updates"] if group["bias_correction"] else 1.0
    correction2 = math.sqrt(1 - beta2 ** group["updates"]) if group["bias_correction"] else 1.0
    torch._foreach_lerp_(averages, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    denominators = torch._foreach_sqrt(squares)
    torch._foreach_add_(denominators, group["eps"] * correction2)  # as torch.optim.AdamW, on the corrected root
    torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_addcdiv_(params, averages, denominators, -group["lr"] * correction2 / correction1)


@pytest.mark.parametrize("correct", [False, True])
def test_the_fused_update_is_the_plain_one_to_1e_12(correct):
    generator = torch.Generator().manual_seed(0)

    def draw(factor=1.0):
        return [factor * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((4, 3), (7,), (1,))]
    states = [[draw(), [torch.zeros_like(x) for x in draw()], [torch.zeros_like(x) for x in draw()]]]
    states.append([[x.clone() for x in part] for part in states[0]])
    for step in range(1, 21):
        group = dict(lr=1e-2 / step, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.05, bias_correction=correct, updates=step)
        grads = draw(10.0 ** (step % 5 - 3))
        for update, (params, averages, squares) in zip((plain_adam, optimization.adam), states):
            update(group, params, [grad.clone() for grad in grads], averages, squares)
        for plain, fused in zip(*states):
            torch.testing.assert_close(fused, plain, rtol=0, atol=1e-12)


# The benchmark

def test_the_benchmark_s_arithmetic_is_what_torch_counts(monkeypatch):
    """Of a batch without padding, forward and backward; pooler and classifier, which it leaves out, taken off."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.gpu import flops
    monkeypatch.setattr(modeling, "ROWS", 1)  # it counts no padding
    monkeypatch.setattr(attention, "WIDTH", 1)
    model, lengths = make_model(layers=[-2], hierarchical=None), np.array([20, 3, 11])
    batch = data.pack([np.ones(length, int) for length in lengths], labels=[0, 1, 2])
    for training in (False, True):
        # by its formula: of the CPU's fused attention torch counts nothing
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            logits = model(batch)
            if training:
                F.cross_entropy(logits, batch.labels).backward()
        heads = 2 * len(lengths) * 16 * (16 + 3) * (3 if training else 1)
        assert counter.get_total_flops() - heads == flops(model.bert.config, lengths, training)


def test_the_benchmark_measures_both_sides_without_tensorflow(script, tmp_path):
    """At the size of --smoke; a machine with a GPU may have no TensorFlow."""
    (tmp_path / "tensorflow.py").write_text("raise ImportError('there is no TensorFlow')")
    done = script("benchmarks/gpu.py", "--smoke", "--documents", 24, "--rounds", 1, "--peer_python", sys.executable, "--sides",
                  "ours", "transformers", "--peak_tflops", 0.5, "--results", tmp_path / "gpu.jsonl",
                  env={"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}, plain=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [(line["case"], line["side"]) for line in lines] == [
        (case, side) for case in ("training 24 x 512", "prediction 128 x 512") for side in ("ours", "transformers")]
    for line in lines:
        figures = line["figures"]
        assert figures["tokens_per_second"] / figures["documents_per_second"] == pytest.approx(264, abs=5)
        assert figures["mfu_percent"] == pytest.approx(100 * figures["tflops_per_second"] / 0.5, abs=0.2)
        assert line["stage"] == "gpu, smoke" and "peak_gpu_mib" not in figures


def test_the_benchmark_refuses_to_guess(script, tmp_path, refused, monkeypatch):
    from benchmarks.gpu import peak_of
    assert peak_of(CPU, None) is None and peak_of(CPU, 2.0) == 2e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 of another kind")
    assert peak_of(torch.device("cuda", 0), None) is None
    refused("benchmarks/gpu.py", "--results", tmp_path / "gpu.jsonl", env={"CUDA_VISIBLE_DEVICES": ""}, words="no GPU is here")
    assert not list(tmp_path.iterdir())


def test_the_tests_of_a_gpu_are_skipped_without_one():
    """By the command that the documentation gives, which ends well then."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu",
                           ROOT / "tests/test_gpu.py"], capture_output=True, text=True,
                          env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0 and " skipped in " in done.stdout and "passed" not in done.stdout, done.stdout
    assert (ROOT / "scripts/test.sh").read_text().rstrip().endswith('tests "$@"')
