"""What makes a CPU quick, against the plain version: dropout, grouped attention, a last layer for [CLS] alone, precision."""
import itertools

import numpy as np
import pytest
import torch

import modeling
from common import precision
from common.command_line import UserError
from common.configuration import BertConfig
from finetuning import attention, packed_weights as packed, random_words
from finetuning.data import pack
from finetuning.dropout import choose_words, dropout
from finetuning.processes import choose_precision
from modeling import BertForSequenceClassification

LENGTHS = [5, 9, 3, 9, 30, 4, 1, 28, 29, 33, 2]


# Dropout

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.937])
def test_an_element_is_dropped_with_its_rate_wherever_it_lies(dtype, rate):
    torch.manual_seed(0)
    x = torch.ones(101, 4003, dtype=dtype).requires_grad_()
    output = dropout(x, rate)
    output.sum().backward()
    kept = output != 0
    torch.testing.assert_close(output[kept], torch.full_like(output[kept], 1 / (1 - rate)), rtol=1e-2, atol=0)
    assert torch.equal(x.grad, output.detach())  # the same mask and factor
    flat = kept.flatten()[:101 * 4003 // 8 * 8].view(-1, 8).double()  # 8: elements of one draw have other lanes
    deviation = (rate * (1 - rate) / len(flat))**0.5
    assert (flat.mean(0) - (1 - rate)).abs().max() < 5 * deviation
    pairs = np.corrcoef(flat.T.numpy()) - np.eye(8)  # lanes know nothing of each other, nor of the next draw
    assert np.abs(pairs).max() < 5 / len(flat)**0.5
    assert abs(np.corrcoef(flat[1:, 0], flat[:-1, 0])[0, 1]) < 5 / len(flat)**0.5


@pytest.mark.parametrize("rate, dropped", [(0.1, 6554), (0.3, 19661), (0.5, 2**15), (1e-9, 0), (1 - 1e-9, 2**16 - 1)])
def test_the_rate_is_exact_to_2_to_the_minus_16(monkeypatch, rate, dropped):
    """But for the one number that is always kept, so that the scale is that of something."""
    every = np.arange(2**16, dtype=np.uint16)
    monkeypatch.setattr(random_words, "draw_words", lambda words, seed: np.copyto(words, every.view(np.uint64)))
    words = choose_words(torch.empty(2**16, dtype=torch.bfloat16), rate, kept=-1, dropped=7)
    assert set(words.tolist()) <= {7, -1} and (words == 7).sum() == dropped


def test_random_words_are_splitmix64_of_a_seed_of_torch():
    words = np.empty(5, np.uint64)
    random_words.draw_words(words, np.uint64(1234567 + 0x9E3779B97F4A7C15))  # its authors' code adds before the first number
    assert words.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
                              16408922859458223821]
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn += [choose_words(torch.empty(1001), 0.5, 1, 0) for _ in range(2)]
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])  # the same state of torch
    different = [drawn[0], drawn[1], drawn[4], drawn[5]]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(different, 2))


# Attention

def inputs(queries, generator):
    return [torch.randn(rows, 4, 8, generator=generator, dtype=torch.float64).requires_grad_()
            for rows in (queries, sum(LENGTHS), sum(LENGTHS))]


def results(function, queries):
    """[Output, gradients of query, key and value] of a function of these for LENGTHS, in float64."""
    generator = torch.Generator().manual_seed(1)
    leaves = inputs(queries, generator)
    output = function(*leaves, pack([np.ones(length, int) for length in LENGTHS]))
    (output * torch.randn(output.shape, generator=generator, dtype=torch.float64)).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("backend", ["grouped", "padded"])
@pytest.mark.parametrize("queries", [sum(LENGTHS), len(LENGTHS)], ids=["all tokens", "first tokens"])
def test_kernels_are_the_plain_attention_to_1e_12(backend, queries):
    plain, fast = (results(lambda *qkv: attention.attention(*qkv, 0.0, name), queries) for name in ("per_sequence", backend))
    for ours, theirs in zip(fast, plain):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("queries", [sum(LENGTHS), len(LENGTHS)], ids=["all tokens", "first tokens"])
def test_attention_with_dropout_is_plain_softmax_with_those_words_to_1e_12(monkeypatch, queries):
    """Masks by (query's, key's) token, so that both sides drop the same."""
    rate, heads = 0.3, 4
    masks = torch.rand(heads, sum(LENGTHS), sum(LENGTHS), generator=torch.Generator().manual_seed(2)) >= rate
    starts = np.cumsum([0, *LENGTHS])
    own = torch.arange(sum(LENGTHS)) if queries == sum(LENGTHS) else torch.tensor(starts[:-1])
    groups = iter(attention.groups_of(LENGTHS, heads)[0])

    def words_of_group(scores, rate, kept, dropped):
        members, rows, *_ = next(groups)
        asking = rows if queries == sum(LENGTHS) else own[members]
        keep = torch.stack([masks[:, of_query][:, :, of_key] for of_query, of_key in zip(asking, rows)]).flatten(0, 1)
        return torch.where(keep, kept, dropped)
    monkeypatch.setattr(attention, "choose_words", words_of_group)
    grouped = results(lambda *qkv: attention.attention(*qkv, rate, "grouped"), queries)

    def plain(query, key, value, batch):
        outputs = torch.empty_like(query)
        for start, end in zip(starts, starts[1:]):
            at = ((own >= start) & (own < end)).nonzero().flatten()
            scores = torch.einsum("qhd,khd->hqk", query[at], key[start:end]) / 8**0.5
            dropped = scores.softmax(-1) * masks[:, own[at]][:, :, start:end] / (1 - rate)
            outputs = outputs.index_copy(0, at, torch.einsum("hqk,khd->qhd", dropped, value[start:end]))
        return outputs
    for ours, theirs in zip(grouped, results(plain, queries)):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_heads", [2, 12])
@pytest.mark.parametrize("lengths", [[1], [7] * 5, LENGTHS, [512, 2, 511], list(range(1, 200, 3))])
def test_groups_hold_every_token_once_and_little_padding(lengths, num_heads):
    groups, tokens, sequences = attention.groups_of(lengths, num_heads)
    found = torch.cat([rows.flatten() if real is None else rows.flatten()[real] for _, rows, real, _ in groups])
    assert torch.equal(found[tokens], torch.arange(sum(lengths)))
    assert torch.equal(torch.cat([members for members, *_ in groups]).flatten()[sequences], torch.arange(len(lengths)))
    for members, rows, real, bias in groups:
        own = [lengths[member] for member in members.flatten()]
        longest, shortest = (-(-size // attention.WIDTH) * attention.WIDTH for size in (max(own), min(own)))
        assert rows.shape == (len(own), longest) and (max(own) <= attention.MOST_PADDING * min(own) or longest == shortest)
        assert len(own) == 1 or num_heads * rows.numel() * rows.shape[1] <= attention.MOST_SCORES
        assert (real is None) == (bias is None) == (min(own) == rows.shape[1])


# The last layer

CONFIG = BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=20,
                    max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.mark.parametrize("layers, checkpointing", [([-2], False), ([-2], True), ([2], False), ([0, 2], False), ([1], True)])
def test_the_last_layer_for_cls_alone_is_the_whole_one_to_1e_12(layers, checkpointing):
    torch.manual_seed(0)
    model = BertForSequenceClassification(CONFIG, 3, layers=layers).double().train()
    assert model.first_only
    model.bert.encoder.gradient_checkpointing = checkpointing
    rng = np.random.default_rng(0)
    batch = pack([rng.integers(1, 50, length) for length in LENGTHS])

    def whole():
        _, outputs = model.bert(batch, model.num_layers)
        assert all(output.shape[0] == sum(LENGTHS) for output in outputs)
        states = [output[batch.cu_seqlens[:-1]] for output in outputs]
        features = model.bert.pooler(states[-1]) if layers == [-2] else torch.cat([states[layer] for layer in layers], dim=1)
        return model.classifier(features).float()

    assert_same(gradients(model, model(batch)), gradients(model, whole()))


def gradients(model, logits):
    """[Logits, gradient of each parameter that has one]"""
    model.zero_grad()
    (logits * torch.arange(logits.numel()).view(logits.shape)).sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 20
    for fast, plain in zip(ours, theirs):
        torch.testing.assert_close(fast, plain, rtol=1e-6 if fast.dtype == torch.float32 else 1e-11, atol=1e-12)


@pytest.mark.parametrize("features", [{}, {"layers": [0, 2], "pooling_type": "mean"}, {"layers": [-1], "pooling_type": "max"},
                                      {"layers": [1], "classifier": "bilstm_attention"}], ids=str)
def test_rows_of_no_token_change_nothing(monkeypatch, features):
    """They are a CPU's, after the tokens'. Without padding in attention (per_sequence) there are none."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(CONFIG, 3, **features).double().train()
    batch = pack([np.random.default_rng(0).integers(1, 50, length) for length in LENGTHS])
    rows, forward = [], model.bert.encoder.layer[0].forward
    monkeypatch.setattr(model.bert.encoder.layer[0], "forward",
                        lambda hidden, *others: rows.append(len(hidden)) or forward(hidden, *others))
    filled = gradients(model, model(batch))
    for layer in model.bert.encoder.layer:
        layer.attention.self.backend = "per_sequence"
    assert_same(filled, gradients(model, model(batch)))
    assert rows == [-(-sum(LENGTHS) // modeling.ROWS) * modeling.ROWS, sum(LENGTHS)] and rows[0] > rows[1]


# Packed weights

needs_bf16 = pytest.mark.skipif(not precision.bf16_instructions(), reason="this CPU has no bfloat16 instructions")


@needs_bf16
@pytest.mark.parametrize("features", [{}, {"layers": [0, 2], "pooling_type": "mean"}, {"layers": [1], "hierarchical": "max"},
                                      {"layers": [1], "classifier": "bilstm_attention"}], ids=str)
def test_packed_weights_give_the_same_bits(monkeypatch, features):
    torch.manual_seed(0)
    model = BertForSequenceClassification(CONFIG, 3, **features).eval()
    batch = pack([np.random.default_rng(0).integers(1, 50, length) for length in LENGTHS], fractions=[len(LENGTHS)])
    products, product = [], packed.product
    monkeypatch.setattr(packed, "product", lambda x, **own: products.append(len(x)) or product(x, **own))

    def logits(bf16):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), packed.packed_weights(model.bert.encoder, bf16):
            return model(batch)
    plain = logits(False)
    assert not products
    assert torch.equal(logits(True), plain)
    assert len(products) == 6 * model.num_layers and max(products) == -(-sum(LENGTHS) // modeling.ROWS) * modeling.ROWS
    assert torch.equal(logits(False), plain) and len(products) == 6 * model.num_layers


@needs_bf16
def test_weights_are_packed_anew_and_never_of_a_compiled_encoder():
    torch.manual_seed(0)
    encoder = BertForSequenceClassification(CONFIG, 3).bert.encoder
    layer, states = encoder.layer[0].intermediate.dense, torch.randn(5, CONFIG.hidden_size).bfloat16()
    for _ in range(2):  # the second time of other weights, and after an error
        with pytest.raises(KeyError), torch.no_grad(), packed.packed_weights(encoder, True):
            plain = torch.nn.functional.linear(states, layer.weight.bfloat16(), layer.bias.bfloat16())
            assert packed.is_packed(layer) and torch.equal(layer(states), plain) and plain.dtype == torch.bfloat16
            raise KeyError
        assert not packed.is_packed(layer)
        torch.nn.init.normal_(layer.weight)
    encoder.compile_layers()
    with packed.packed_weights(encoder, True):
        assert not packed.is_packed(layer)


# Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("asked, began, instructions, width, chosen, reason", [
    ("auto", None, "avx512_bf16", 384, "bf16", "a CPU with avx512_bf16"),
    ("auto", None, "amx_bf16", precision.BF16_HIDDEN_SIZE, "bf16", "a CPU with amx_bf16"),
    ("auto", None, "avx512_bf16", precision.BF16_HIDDEN_SIZE - 1, "float32", "narrower than"),
    ("auto", None, None, 768, "float32", "a CPU without bfloat16 instructions"),
    ("auto", "bf16", None, 768, "bf16", "as the run began"),
    ("auto", "float32", "amx_bf16", 768, "float32", "as the run began"),
    ("float32", "bf16", "amx_bf16", 768, "float32", "--precision"),
    ("bf16", None, None, 8, "bf16", "--precision")])
def test_auto_is_bfloat16_where_the_cpu_has_it_and_the_model_is_not_tiny(monkeypatch, asked, began, instructions, width,
                                                                        chosen, reason):
    monkeypatch.setattr(precision, "bf16_instructions", lambda: instructions)
    found, why = choose_precision(asked, began, width, CPU)
    assert found == chosen and reason in why


@pytest.mark.parametrize("flags, resumed, expected", [
    ({"precision": "bf16"}, [], "bf16"), ({"precision": "float32"}, [{"precision": "bf16"}], "bf16"),
    ({"bf16": True}, [], "bf16"), ({"bf16": False}, [], "float32"), ({"bf16": False}, [{"bf16": True}], "bf16"),
    ({"precision": "mixed"}, [], None)])
def test_a_run_says_which_precision_it_has_also_one_of_before_the_flag(flags, resumed, expected):
    assert precision.precision_of({"flags": flags, "resumed": [{"flags": of} for of in resumed]}) == expected
    assert precision.precision_of(None) is None


def test_tf32_is_of_gpus():
    with pytest.raises(UserError, match="--precision tf32 is of GPUs .* pass --precision auto"):
        choose_precision("tf32", None, 768, CPU)
