"""Every path of a GPU against the CPU's, each within the bounds of its precision; and what is equal to the bit. With a GPU:

    bash scripts/test.sh -m gpu

test_gpu_twins.py holds what a CPU can show of the same."""
import contextlib
import os
import signal
import socket

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import modeling
import optimization
import runs
from finetuning import attention, data, processes, training
from finetuning.gpu import moved_ahead
from runs import SINGLE, assert_equal_weights, call, losses_of, train_flags
from test_gpu_twins import loss_and_gradients, make_dataset, make_model

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for `deterministic`; read when CUDA starts
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
GPU = torch.device("cuda", 0)
ON_GPU, BF16 = ["--no_cuda=False", "--num_processes", 1], ["--precision", "bf16"]
LENGTHS = [5, 1, 130, 512, 64, 65]


@pytest.fixture(scope="module", autouse=True)
def flash_is_here():
    if torch.cuda.is_available() and not attention.has_flash(GPU):
        pytest.skip("this GPU has no flash attention")


@pytest.fixture
def deterministic():
    """Kernels that add in one order alone, where PyTorch has some."""
    torch.use_deterministic_algorithms(True)  # not warn_only, with which flash attention stays as it is
    yield
    torch.use_deterministic_algorithms(False)


def half_precision(enabled):
    return torch.autocast("cuda", torch.bfloat16) if enabled else contextlib.nullcontext()


def assert_near(ours, theirs, tolerance):
    """Each tensor's distance is at most `tolerance` of the other's norm."""
    for mine, other in zip(ours, theirs, strict=True):
        mine, other = mine.detach().float().cpu(), other.detach().float().cpu()
        distance = torch.linalg.vector_norm(mine - other) / torch.linalg.vector_norm(other).clamp(min=1e-3)
        assert mine.isfinite().all() and distance < tolerance, (distance, tuple(other.shape))


# Attention

def attended(backend, device, dtype, size, dropout=0.0, values=None):
    """Output and gradients of attention over LENGTHS; query, key and value lie in one tensor, as project_together leaves
    them."""
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    batch = data.pack([np.zeros(length, int) for length in LENGTHS]).to(device)
    joined = torch.randn(total, 3 * 2 * size, generator=generator).to(torch.bfloat16)  # the same numbers in each precision
    upstream = torch.randn(total, 2, size, generator=generator).to(torch.bfloat16)
    if values is not None:
        joined[:, 4 * size:], upstream = values, torch.full_like(upstream, values)
    joined = joined.to(device, dtype).requires_grad_()
    output = attention.attention(*(x.unflatten(-1, (2, size)) for x in joined.chunk(3, dim=-1)), batch, dropout, backend)
    output.backward(upstream.to(device, dtype))
    return output, joined.grad


@pytest.mark.parametrize("backend, dtype, tolerance", [
    ("varlen", torch.bfloat16, 0.02), ("varlen", torch.float16, 0.005), ("padded", torch.bfloat16, 0.02),
    ("padded", torch.float32, 1e-4), ("per_sequence", torch.float32, 1e-4)])
@pytest.mark.parametrize("size", [8, 64, 128])
def test_attention_is_the_cpu_s(backend, dtype, size, tolerance):
    assert_near(attended(backend, GPU, dtype, size), attended("per_sequence", "cpu", torch.float32, size), tolerance)


def test_half_precision_takes_flash_attention_and_float32_the_padded_one(monkeypatch):
    taken = []
    monkeypatch.setattr(attention, "ATTENTIONS", {
        name: lambda *inputs, name=name, function=function: taken.append(name) or function(*inputs)
        for name, function in attention.ATTENTIONS.items()})
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        attended(None, GPU, dtype, 64)
    assert taken == ["varlen", "varlen", "padded"]


@pytest.mark.parametrize("backend", ["varlen", "padded"])
def test_attention_dropout_drops_its_share_and_the_backward_pass_drops_the_same(backend):
    """With all values and gradients 1, the outputs of a sequence sum up to what its values' gradients do; their mean is 1."""
    torch.manual_seed(0)
    output, gradient = attended(backend, GPU, torch.bfloat16, 64, dropout=0.25, values=1.0)
    again, _ = attended(backend, GPU, torch.bfloat16, 64, dropout=0.25, values=1.0)
    assert not torch.equal(output, again) and output.float().mean().item() == pytest.approx(1.0, abs=0.02)
    of_values = gradient[:, 2 * 2 * 64:].float()
    for mine, other in zip(output.float().flatten(1).split(LENGTHS), of_values.split(LENGTHS)):
        assert mine.mean().item() == pytest.approx(other.mean().item(), abs=0.01)
    deviation = output[:, :, 0].float().split(LENGTHS)[3].std().item()  # of 512 weights, nearly equal ones at most
    assert deviation > 0.25 ** 0.5 * (1 / 0.75 / 512) ** 0.5


# The model

MODELS = {"pooled output": dict(layers=[-2]), "mean of tokens": dict(layers=[1, 0], pooling_type="mean"),
          "max of tokens": dict(pooling_type="max"), "layers' mean": dict(layers=[-1], layer_pooling="mean"),
          "hierarchical, self-attention": dict(hierarchical="self_attention"), "hierarchical, max": dict(hierarchical="max"),
          "biLSTM": dict(classifier="bilstm_attention", lstm_hidden_size=8, attention_size=6, attention_hops=2)}


@pytest.mark.parametrize("half, tolerance", [(False, 1e-3), (True, 0.1)])
@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_the_cpu_s(name, half, tolerance):
    """Of every pooling, in float32 with padded and in bfloat16 with flash attention: packed on both sides, the CPU's packed
    path being transformers' padded one to 1e-5 (test_modeling.py)."""
    model, batch = make_model(**MODELS[name]), make_dataset().batch(range(13))
    wanted = loss_and_gradients(model, batch)
    with half_precision(half):
        ours = loss_and_gradients(model.to(GPU), batch.to(GPU))
    assert_near(ours[:1], wanted[:1], tolerance)
    assert_near([torch.cat([grad.flatten() for grad in ours[1:]])], [torch.cat([grad.flatten() for grad in wanted[1:]])],
                tolerance)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("switch", ["gradient_checkpointing", "sequences_at_once"])
def test_what_is_computed_again_has_the_dropout_of_the_first_time(switch, half):
    """The gradient of the loss along itself is its slope, which it would not be were the masks drawn anew; and checkpointing
    leaves the loss as it is."""
    model, batch = make_model(dropout=0.3).to(GPU).train(), make_dataset().batch(range(13)).to(GPU)
    losses = []
    for value in (None, 5):
        model.bert.encoder.gradient_checkpointing = bool(value) and switch == "gradient_checkpointing"
        model.sequences_at_once = value if switch == "sequences_at_once" else None
        torch.manual_seed(0)
        with half_precision(half):
            loss, *gradients = loss_and_gradients(model, batch)
        losses.append(loss)
    if switch == "gradient_checkpointing":
        assert losses[0] == losses[1]
    trained = [param for param in model.parameters() if param.grad is not None]
    squared = sum(grad.square().sum() for grad in gradients)
    step = 0.01 * losses[1] / squared
    with torch.no_grad():
        for param, grad in zip(trained, [grad.clone() for grad in gradients], strict=True):
            param -= step * grad
    torch.manual_seed(0)
    with torch.no_grad(), half_precision(half):
        lower = F.cross_entropy(model(batch), batch.labels)
    assert (losses[1] - lower).item() == pytest.approx(0.01 * losses[1].item(), rel=0.5 if half else 0.2)


@pytest.mark.long
def test_compiled_layers_are_the_plain_ones_and_are_compiled_once():
    model, dataset = make_model().to(GPU).train(), make_dataset()
    batches = [dataset.batch(indices).to(GPU) for indices in (range(13), range(5), range(3, 12))]

    def results():
        with half_precision(True):
            return [loss_and_gradients(model, batch) for batch in batches]
    plain = results()
    model.bert.encoder.compile_layers()
    torch._dynamo.utils.counters.clear()
    for ours, theirs in zip(results(), plain):
        assert_near([torch.cat([x.flatten() for x in ours])], [torch.cat([x.flatten() for x in theirs])], 0.05)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2 and not torch._dynamo.utils.counters["graph_break"]


# The update, and what waits

@pytest.mark.parametrize("clip_grad", ["tensor", "global"])
@pytest.mark.parametrize("correct", [False, True])
def test_updates_are_the_cpu_s_to_1e_6(clip_grad, correct):
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator) for shape in ((40, 30), (7,), (1,))]
    sides = []
    for device in ("cpu", GPU):
        params = [torch.nn.Parameter(start.to(device, copy=True)) for start in starts]
        sides.append((params, optimization.BertAdam(params, 1e-2, clip_grad=clip_grad, bias_correction=correct)))
    for step in range(20):
        grads = [10.0 ** (step % 5 - 3) * torch.randn(start.shape, generator=generator) for start in starts]
        for params, optimizer in sides:
            for param, grad in zip(params, grads):
                param.grad = grad.to(param.device, copy=True)
            optimizer.step()
        assert_near([sides[1][1].grad_norm], [sides[0][1].grad_norm], 1e-6)
        for ours, theirs in zip(*(params for params, _ in reversed(sides))):
            torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-5, atol=1e-6)


@pytest.fixture
def no_waiting(monkeypatch):
    """Between a batch's arrival and the log's next look at the device, whatever makes the host wait is an error."""
    watched = []

    def watching(batches, device):
        for batch in moved_ahead(batches, device):
            torch.cuda.set_sync_debug_mode("error")
            watched.append(batch)
            try:
                yield batch
            finally:
                torch.cuda.set_sync_debug_mode("default")
    original = training.Progress.take_in

    def take_in(*arguments):
        torch.cuda.set_sync_debug_mode("default")
        return original(*arguments)
    monkeypatch.setattr(training, "moved_ahead", watching)
    monkeypatch.setattr(training.Progress, "take_in", take_in)
    yield watched
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("flags", [[], BF16, [*BF16, "--clip_grad", "global", "--gradient_accumulation_steps", 2],
                                   [*BF16, "--layers", 1, 0, "--pooling_type", "mean", "--gradient_checkpointing"],
                                   [*BF16, "--frozen_bert", "--classifier", "bilstm_attention"],
                                   [*BF16, "--hierarchical", "max", "--max_seq_length", 16, "--fractions_at_once", 3]])
def test_nothing_in_an_update_waits_for_the_gpu(tiny, tmp_path, no_waiting, flags):
    call(SINGLE, *train_flags(tiny, tmp_path / "run"), *ON_GPU, "--log_steps", 100, "--num_train_epochs", 1, *flags)
    assert len(no_waiting) >= 8


def test_batches_ahead_are_whole_while_the_gpu_lags_behind():
    """A hundred batches are asked for before the GPU has computed the first: none is overwritten by a later copy."""
    dataset, sums = make_dataset(40), []
    chosen = [np.random.default_rng(seed).permutation(40) for seed in range(100)]
    torch.cuda._sleep(10**9)  # cycles: about half a second
    for batch in moved_ahead(map(dataset.batch, chosen), GPU):
        place = torch.arange(1, len(batch.input_ids) + 1, device=GPU)
        sums.append(((batch.input_ids * place).sum(), batch.cu_seqlens_int32.sum(), (batch.labels + 1).sum()))
    for indices, ours in zip(chosen, sums, strict=True):
        batch = dataset.batch(indices)
        place = torch.arange(1, len(batch.input_ids) + 1)
        assert [x.item() for x in ours] == [(batch.input_ids * place).sum(), batch.cu_seqlens.sum(), (batch.labels + 1).sum()]


# Runs

@pytest.fixture(scope="module")
def on_cpu(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpu") / "run"
    call(SINGLE, *train_flags(tiny, folder))
    return folder


@pytest.mark.parametrize("flags, tolerance", [
    ([], 1e-3), (BF16, 0.05), ([*BF16, "--gradient_accumulation_steps", 2], 0.05),
    ([*BF16, "--gradient_checkpointing"], 0.05)])
def test_a_run_has_the_losses_of_the_cpu_s(tiny, on_cpu, tmp_path, flags, tolerance):
    call(SINGLE, *train_flags(tiny, tmp_path / "run"), *ON_GPU, *flags)
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses_of(on_cpu), rtol=tolerance, atol=tolerance)


def test_predictions_are_the_cpu_s_and_twice_the_same_to_the_bit(tiny, on_cpu, tmp_path):
    """Probabilities to 0.0001 in float32 and to 0.02 in bfloat16."""
    (tmp_path / "texts.txt").write_text("the police\nstocks fall\na new phone and a very long word after it\n" * 20)
    tables = {}
    for name, flags in (("cpu", ["--no_cuda"]), ("gpu", ON_GPU), ("again", ON_GPU), ("bf16", [*ON_GPU, *BF16]),
                        ("bf16 again", [*ON_GPU, *BF16])):
        call(SINGLE, "--do_predict", "--predict_file", tmp_path / "texts.txt", "--init_checkpoint", on_cpu / "last",
             "--eval_batch_size", 8, "--output_dir", tmp_path / name, *flags)
        rows = (tmp_path / name / "predictions.tsv").read_text().splitlines()[1:]
        tables[name] = np.array([row.split("\t")[1:] for row in rows], float)
    np.testing.assert_allclose(tables["gpu"], tables["cpu"], atol=1e-4)
    np.testing.assert_allclose(tables["bf16"], tables["cpu"], atol=0.02)
    for name in ("", "bf16 "):
        np.testing.assert_array_equal(tables[f"{name}again"], tables[name.strip() or "gpu"])


@pytest.mark.parametrize("flags", [[], BF16])
def test_a_run_that_is_stopped_goes_on_to_the_weights_of_an_undisturbed_one_to_the_bit(tiny, tmp_path, monkeypatch,
                                                                                       deterministic, flags):
    """With dropout, and with kernels that add in one order. Both also stand for the same run done twice."""
    runs.make_bert(tmp_path, len((tiny / "vocab.txt").read_text().splitlines()), dropout=0.2)
    command = [*train_flags(tiny, tmp_path / "whole"), "--bert_config_file", tmp_path / "bert_config.json", "--init_checkpoint",
               tmp_path / "pytorch_model.bin", *ON_GPU, *flags]
    call(SINGLE, *command)
    original, done = optimization.BertAdam.step, []

    def step(*arguments):
        done.append(original(*arguments))
        if len(done) in (5, 14):
            os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(optimization.BertAdam, "step", step)
    command += ["--output_dir", tmp_path / "stopped"]
    for _ in range(2):
        with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            call(SINGLE, *command)
    call(SINGLE, *command)
    assert len(done) == 24
    assert losses_of(tmp_path / "stopped") == losses_of(tmp_path / "whole")
    assert_equal_weights(tmp_path / "stopped" / "last", tmp_path / "whole" / "last")


def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu(tiny, on_cpu, tmp_path, monkeypatch):
    """Another device is another machine, not another run; the state of a GPU's random numbers is left aside there."""
    original, done = optimization.BertAdam.step, []

    def step(*arguments):
        done.append(original(*arguments))
        if len(done) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
    monkeypatch.setattr(optimization.BertAdam, "step", step)
    with pytest.raises(SystemExit):
        call(SINGLE, *train_flags(tiny, tmp_path / "run"), *ON_GPU)
    call(SINGLE, *train_flags(tiny, tmp_path / "run"))
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses_of(on_cpu), rtol=1e-3, atol=1e-3)


def one_of_two(rank, port, flags):
    """A process of a run of two on one GPU, which NCCL refuses and gloo allows."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(port)
    meet = processes.meet
    processes.meet = lambda backend, *arguments: meet("gloo", *arguments)
    call(SINGLE, *flags)


@pytest.mark.parametrize("flags, tolerance", [([], 1e-3), (BF16, 0.05)])
def test_two_processes_on_one_gpu_have_the_losses_of_one(tiny, on_cpu, tmp_path, flags, tolerance):
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [*train_flags(tiny, tmp_path / "run"), "--no_cuda=False", *flags]
    torch.multiprocessing.spawn(one_of_two, (port, list(map(str, flags))), nprocs=2)
    np.testing.assert_allclose(losses_of(tmp_path / "run"), losses_of(on_cpu), rtol=tolerance, atol=tolerance)
