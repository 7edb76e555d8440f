"""modeling.py: the packed encoder against transformers' padded one, features, gradients, speed switches, weights."""
import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

import modeling
from finetuning import attention
from finetuning.data import pack
from flash import flash_on_cpu  # noqa: F401
from common.command_line import UserError
from common.configuration import BertConfig
from finetuning.weights import load_weights, read_weights
from modeling import BertForPreTraining, BertForSequenceClassification, BertModel

LENGTHS = [7, 1, 20, 2, 13]
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
DEVICES = ["cpu", pytest.param("cuda", marks=GPU)]


def small_config(**more):
    """A BERT of 3 layers in which every part has a shape of its own."""
    return BertConfig(**{**dict(vocab_size=53, hidden_size=16, num_hidden_layers=3, num_attention_heads=4,
                                intermediate_size=24, hidden_act="gelu", hidden_dropout_prob=0.0,
                                attention_probs_dropout_prob=0.0, max_position_embeddings=24, initializer_range=0.3),
                         **more})


def shaken(model):
    """The model with every weight non-trivial: biases and LayerNorms too."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            param.add_(0.1 * torch.randn(param.shape, generator=generator))
    return model.eval()


def sequences():
    generator = np.random.default_rng(0)
    return ([generator.integers(1, 53, length) for length in LENGTHS],
            [generator.integers(0, 2, length) for length in LENGTHS])


def packed_batch():
    ids, segments = sequences()
    return pack(ids, segments, labels=[0, 1, 2, 1, 0])


def padded_batch():
    """The same sequences as transformers takes them."""
    ids, segments = sequences()
    padded = {name: torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
              for name in ("input_ids", "token_type_ids", "attention_mask")}
    for row, (sequence, segment) in enumerate(zip(ids, segments)):
        padded["input_ids"][row, :len(sequence)] = torch.from_numpy(sequence)
        padded["token_type_ids"][row, :len(sequence)] = torch.from_numpy(segment)
        padded["attention_mask"][row, :len(sequence)] = 1
    return padded


def peer_config(config, **more):
    return transformers.BertConfig(**config.to_dict(), attn_implementation="eager", **more)


def assert_close(ours, theirs, tolerance=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


# The encoder

@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"])
def test_packed_encoder_equals_transformers_padded_one_to_1e_5(activation):
    """Every layer's hidden state of every real token, and the pooled output; a random model of 3 layers."""
    config = small_config(hidden_act=activation)
    model = shaken(BertModel(config))
    peer = transformers.BertModel(peer_config(config)).eval()
    peer.load_state_dict(model.state_dict())
    batch, padded = packed_batch(), padded_batch()
    with torch.no_grad():
        embedded, outputs = model(batch)
        pooled = model.pooler(outputs[-1][batch.cu_seqlens[:-1]])
        wanted = peer(**padded, output_hidden_states=True)
    real = padded["attention_mask"].bool()
    for ours, theirs in zip([embedded, *outputs], wanted.hidden_states, strict=True):
        assert_close(ours, theirs[real])
    assert_close(pooled, wanted.pooler_output)


def test_pre_training_heads_equal_transformers_to_1e_5():
    config = small_config()
    model = shaken(BertForPreTraining(config))
    peer = transformers.BertForPreTraining(peer_config(config)).eval()
    peer.load_state_dict(model.state_dict())
    padded = padded_batch()
    with torch.no_grad():
        hidden, pooled, masked_lm, next_sentence = model(packed_batch())
        wanted = peer(**padded, output_hidden_states=True)
    real = padded["attention_mask"].bool()
    assert_close(hidden[-1], wanted.hidden_states[-1][real])
    assert_close(masked_lm, wanted.prediction_logits[real], 1e-4)  # sums of 16 products of a wide decoder
    assert_close(next_sentence, wanted.seq_relationship_logits)


def test_a_sequence_does_not_see_its_neighbours():
    model = shaken(BertModel(small_config()))
    ids, segments = sequences()
    with torch.no_grad():
        together = model(packed_batch())[1][-1].split(LENGTHS)
        for sequence, segment, wanted in zip(ids, segments, together):
            assert_close(model(pack([sequence], [segment]))[1][-1], wanted)


def test_fewer_layers_are_the_lowest():
    model = shaken(BertModel(small_config()))
    with torch.no_grad():
        _, outputs = model(packed_batch())
        _, lowest = model(packed_batch(), num_layers=2)
    assert len(lowest) == 2
    assert_close(lowest[1], outputs[1], 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", sorted(attention.ATTENTIONS))
def test_attention_backends_equal_the_formula_to_1e_5(flash_on_cpu, backend, device):
    """softmax(q k' / sqrt(d)) v inside each sequence, and its gradients, in float32."""
    if (backend, device) == ("varlen", "cuda"):
        pytest.skip("in half precision alone, see test_gpu.py")
    batch = packed_batch()
    generator = torch.Generator().manual_seed(0)
    query, key, value, upstream = (torch.randn(sum(LENGTHS), 4, 6, generator=generator) for _ in range(4))

    def gradients(function, where):
        inputs = [x.to(where).requires_grad_() for x in (query, key, value)]
        output = function(*inputs)
        output.backward(upstream.to(where))
        return [x.cpu() for x in (output.detach(), *(x.grad for x in inputs))]

    def formula(query, key, value):
        outputs = []
        for q, k, v in zip(*(x.split(LENGTHS) for x in (query, key, value))):
            weights = torch.softmax(torch.einsum("qhd,khd->hqk", q, k) / 6 ** 0.5, dim=-1)
            outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
        return torch.cat(outputs)

    moved = batch.to(device)
    ours = gradients(lambda q, k, v: attention.attention(q, k, v, moved, 0.0, backend), device)
    for mine, wanted in zip(ours, gradients(formula, "cpu")):
        assert_close(mine, wanted)


@pytest.mark.parametrize("backend", sorted(attention.ATTENTIONS))
def test_attention_dropout_drops_about_its_share_and_keeps_the_mean(flash_on_cpu, backend):
    """With all values 1 each output is the sum of the kept weights over 1 - p: mean 1, and 0 where all are dropped."""
    torch.manual_seed(0)
    batch = pack([np.zeros(n, int) for n in [2] * 300])
    query, key = torch.zeros(600, 2, 8), torch.zeros(600, 2, 8)
    output = attention.attention(query, key, torch.ones(600, 2, 8), batch, 0.25, backend)[:, :, 0]
    assert output.mean().item() == pytest.approx(1.0, abs=0.08)
    counts = [(torch.isclose(output, torch.tensor(value))).float().mean().item() for value in (0.0, 2 / 3, 4 / 3)]
    assert counts == pytest.approx([1 / 16, 6 / 16, 9 / 16], abs=0.06) and sum(counts) == pytest.approx(1)


# The classifier's features

def features_by_definition(model, layers, layer_pooling, pooling_type, batch):
    """What the flags say, sequence by sequence, from the hidden states."""
    _, outputs = model.bert(batch)
    rows = []
    for number in range(len(LENGTHS)):
        start, end = batch.cu_seqlens[number], batch.cu_seqlens[number + 1]
        states = []
        for layer in layers:
            tokens = outputs[layer][start:end]
            states.append({"cls": tokens[0], "mean": tokens.mean(0), "max": tokens.max(0).values}[pooling_type])
        joined = {"concat": lambda: torch.cat(states), "mean": lambda: torch.stack(states).mean(0),
                  "max": lambda: torch.stack(states).max(0).values}[layer_pooling]()
        rows.append(joined)
    return torch.stack(rows)


@pytest.mark.parametrize("pooling_type", ["cls", "mean", "max"])
@pytest.mark.parametrize("layers, layer_pooling", [
    ([2], "concat"), ([0], "concat"), ([2, 0], "concat"), ([0, 2], "concat"), ([-1], "concat"), ([2, 1], "mean"),
    ([0, 1], "max"), ([-1], "mean")])
def test_features_equal_their_definition(layers, layer_pooling, pooling_type):
    model = shaken(BertForSequenceClassification(small_config(), 3, layers, layer_pooling, pooling_type))
    batch = packed_batch()
    with torch.no_grad():
        ours = model.features(batch)
        chosen = range(3) if layers == [-1] else layers
        wanted = features_by_definition(model, chosen, layer_pooling, pooling_type, batch)
    assert_close(ours, wanted, 1e-6)
    assert model.classifier.in_features == wanted.shape[1]
    with torch.no_grad():
        assert_close(model(batch), wanted @ model.classifier.weight.T + model.classifier.bias)


def test_the_pooled_output_is_the_default():
    model = shaken(BertForSequenceClassification(small_config(), 3))
    batch = packed_batch()
    with torch.no_grad():
        cls_states = model.bert(batch)[1][-1][batch.cu_seqlens[:-1]]
        assert_close(model.features(batch), torch.tanh(model.bert.pooler.dense(cls_states)), 1e-6)


@pytest.mark.parametrize("layers, layer_pooling, pooling_type, words", [
    ([3], "concat", "cls", "this model has the layers 0 to 2"), ([-3], "concat", "cls", "this model has the layers"),
    ([-1, 2], "concat", "cls", "stand alone"), ([-2, 1], "concat", "cls", "stand alone"),
    ([1, 1], "concat", "cls", "named twice"), ([-2], "concat", "mean", "--pooling_type mean"),
    ([-2], "mean", "cls", "--layer_pooling mean"), ([1], "max", "cls", "--layer_pooling max"),
])
def test_features_that_the_model_does_not_have_are_refused(layers, layer_pooling, pooling_type, words):
    with pytest.raises(UserError, match=words):
        BertForSequenceClassification(small_config(), 3, layers, layer_pooling, pooling_type)


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(batch), batch.labels)
    loss.backward()
    return loss.detach(), {name: param.grad for name, param in model.named_parameters()}


def test_gradients_equal_transformers_to_1e_5():
    config = small_config()
    model = shaken(BertForSequenceClassification(config, 3))
    peer = transformers.BertForSequenceClassification(peer_config(config, num_labels=3)).eval()
    peer.load_state_dict(model.state_dict())
    batch = packed_batch()
    loss, gradients = loss_and_gradients(model, batch)
    wanted = peer(**padded_batch(), labels=batch.labels).loss
    wanted.backward()
    assert_close(loss, wanted.detach())
    for name, param in peer.named_parameters():
        assert_close(gradients[name], param.grad)


def test_only_what_the_features_need_is_trained():
    model = BertForSequenceClassification(small_config(), 3, [1, 0])
    _, gradients = loss_and_gradients(model, packed_batch())
    without = {name for name, gradient in gradients.items() if gradient is None}
    assert without == {name for name in gradients if "layer.2." in name or "pooler" in name}
    assert without == {name for name, param in model.named_parameters() if not param.requires_grad}


# Speed switches

@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_number(dropout):
    """Equal losses and gradients, also with dropout: the inner states are drawn again alike."""
    config = small_config(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model = shaken(BertForSequenceClassification(config, 3)).train()
    results = []
    for checkpointing in (False, True):
        model.bert.encoder.gradient_checkpointing = checkpointing
        torch.manual_seed(0)
        results.append(loss_and_gradients(model, packed_batch()))
    assert torch.equal(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        assert torch.equal(gradient, results[1][1][name]), name


def test_compiled_layers_equal_plain_ones_to_1e_5():
    """Loss and gradients on batches of several shapes; as --compile does it."""
    model = shaken(BertForSequenceClassification(small_config(num_hidden_layers=1), 3))
    ids, segments = sequences()
    batches = [packed_batch(), pack(ids[:2], segments[:2], labels=[1, 2])]
    plain = [loss_and_gradients(model, batch) for batch in batches]
    model.bert.encoder.compile_layers()
    for batch, (loss, gradients) in zip(batches, plain):
        compiled_loss, compiled_gradients = loss_and_gradients(model, batch)
        assert_close(compiled_loss, loss)
        for name, gradient in gradients.items():
            assert_close(compiled_gradients[name], gradient)


@pytest.mark.long
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_compiled_layers_train_with_dropout(precision):
    """Each forward pass draws anew; without dropout they are the same."""
    for rate in (0.0, 0.2):
        torch._dynamo.reset()
        model = BertForSequenceClassification(small_config(
            num_hidden_layers=2, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate), 3).train()
        model.bert.encoder.compile_layers()
        losses = []
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss, gradients = loss_and_gradients(model, packed_batch())
            assert all(gradient.isfinite().all() for gradient in gradients.values())
            losses.append(loss.item())
        assert np.isfinite(losses).all() and (losses[0] == losses[1]) == (rate == 0)


@pytest.mark.parametrize("device", DEVICES)
def test_bf16_autocast_stays_near_float32(device):
    """Logits to 5 %, and float32 whatever the compute type."""
    model = shaken(BertForSequenceClassification(small_config(initializer_range=0.05), 3, [2, 1])).to(device)
    batch = packed_batch().to(device)
    with torch.no_grad():
        wanted = model(batch)
        with torch.autocast(device, torch.bfloat16):
            logits = model(batch)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, wanted, rtol=0.05, atol=0.05)


# Weight files

@pytest.fixture
def saved():
    """A classifier with heads for pre-training around the same encoder: (classifier, full state dict)."""
    torch.manual_seed(3)
    source = shaken(BertForPreTraining(small_config()))
    return source, source.state_dict()


def loaded_from(path, layers=(-2,)):
    """A fresh classifier with the weights at `path`, and the three lists of names."""
    torch.manual_seed(4)
    model = BertForSequenceClassification(small_config(), 3, layers)
    return model, load_weights(model, read_weights(str(path), model.bert.config), "--init_checkpoint")


def test_a_classifier_of_another_width_is_left_out_whole(tmp_path):
    """Its bias is of as many classes, and of another classifier."""
    torch.save(shaken(BertForSequenceClassification(small_config(), 3, [1, 2])).state_dict(), tmp_path / "pytorch_model.bin")
    model, (matched, ignored, missing) = loaded_from(tmp_path / "pytorch_model.bin")
    assert ignored == missing == ["classifier.bias", "classifier.weight"]
    assert not model.classifier.bias.any() and all(name.startswith("bert.") for name in matched)


def assert_same_encoder(model, source):
    for name, value in source.bert.state_dict().items():
        assert torch.equal(model.bert.state_dict()[name], value), name


def old_names(state):
    """The names of the authors' released files: gamma and beta, and no `bert.`."""
    return {name.removeprefix("bert.").replace("LayerNorm.weight", "LayerNorm.gamma")
            .replace("LayerNorm.bias", "LayerNorm.beta"): value for name, value in state.items()}


@pytest.mark.parametrize("rename", [
    lambda state: state, old_names, lambda state: {"module." + name: value for name, value in state.items()},
    lambda state: {name.removeprefix("bert."): value for name, value in state.items() if name.startswith("bert.")},
], ids=["ours", "authors", "DataParallel", "encoder alone"])
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_every_format_of_weights_loads(tmp_path, saved, rename, kind):
    source, state = saved
    path = tmp_path / f"weights.{kind}"
    renamed = {name: value.clone() for name, value in rename(state).items()}
    torch.save(renamed, path) if kind == "bin" else safetensors.torch.save_file(renamed, path)
    model, (matched, ignored, missing) = loaded_from(path)
    assert_same_encoder(model, source)
    assert missing == ["classifier.bias", "classifier.weight"]
    assert set(matched) == {name for name in model.state_dict() if name.startswith("bert.")}
    assert len(matched) + len(ignored) == len(renamed)
    assert all("cls" in name for name in ignored)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_folder_of_transformers_loads_and_ours_loads_there(tmp_path, name):
    """What transformers saves loads here; a plain folder with our names loads there with equal outputs."""
    config = small_config()
    peer = shaken(transformers.BertForSequenceClassification(peer_config(config, num_labels=3)))
    if name == "model.safetensors":
        peer.save_pretrained(tmp_path)
    else:
        torch.save(peer.state_dict(), tmp_path / name)
    model, (_, _, missing) = loaded_from(tmp_path)
    assert missing == []
    with torch.no_grad():
        assert_close(model.eval()(packed_batch()), peer(**padded_batch()).logits)


def test_weights_of_a_fine_tuned_model_with_other_classes_keep_the_encoder(tmp_path):
    source = BertForSequenceClassification(small_config(), 5, [0, 2])
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    model, (_, ignored, missing) = loaded_from(tmp_path)
    assert_same_encoder(model, source)
    assert sorted(ignored) == sorted(missing) == ["classifier.bias", "classifier.weight"]


def test_a_tensorflow_checkpoint_loads_directly(tmp_path, saved):
    """Google's names, kernels transposed, optimizer slots and global_step beside them."""
    pytest.importorskip("convert_tf_checkpoint_to_pytorch")
    tf = pytest.importorskip("tensorflow")
    source, state = saved
    variables = {"global_step": np.int64(7), "bert/pooler/dense/kernel/adam_m": np.zeros((16, 16), np.float32)}
    for name, value in state.items():
        if name == "cls.predictions.decoder.weight" or name == "cls.predictions.decoder.bias":
            continue
        value = value.numpy()
        if name.endswith("weight") and "embeddings" not in name and "LayerNorm" not in name:
            transposed = "seq_relationship" not in name
            name = name.replace(".weight", ".kernel")
            value = value.T if transposed else value
        name = (name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
                .replace("embeddings.weight", "embeddings").replace("layer.", "layer_")
                .replace("cls.predictions.bias", "cls.predictions.output_bias")
                .replace("cls.seq_relationship.kernel", "cls.seq_relationship.output_weights")
                .replace("cls.seq_relationship.bias", "cls.seq_relationship.output_bias"))
        variables[name.replace(".", "/")] = value
    prefix = str(tmp_path / "model.ckpt-7")
    names = sorted(variables)
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=[""] * len(names),
                      tensors=[tf.constant(variables[name]) for name in names])
    model, (_, _, missing) = loaded_from(prefix)
    assert_same_encoder(model, source)
    assert missing == ["classifier.bias", "classifier.weight"]


# Weight files that are refused

def refusal(path, **options):
    with pytest.raises(UserError) as caught:
        loaded_from(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["bert.encoder.layer.2.output.dense.weight", "bert.embeddings.LayerNorm.bias",
                                  "bert.pooler.dense.bias"])
def test_a_missing_encoder_weight_is_an_error(tmp_path, saved, name):
    state = {key: value for key, value in saved[1].items() if key != name}
    torch.save(state, tmp_path / "weights.bin")
    assert name in refusal(tmp_path / "weights.bin")


def test_a_missing_pooler_does_not_matter_where_it_is_not_used(tmp_path, saved):
    source, state = saved
    torch.save({name: value for name, value in state.items() if "pooler" not in name}, tmp_path / "weights.bin")
    assert "has no pooler, which --layers -2 reads; take the last layer instead, --layers 2" in refusal(
        tmp_path / "weights.bin")
    model, (_, _, missing) = loaded_from(tmp_path / "weights.bin", layers=[2])
    assert missing == ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"]
    for ours, theirs in zip(model.bert.encoder.parameters(), source.bert.encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("change, words", [
    (dict(hidden_size=8), "--bert_config_file"), (dict(vocab_size=40), "word_embeddings"),
    (dict(num_hidden_layers=4), "more layers"), (dict(num_hidden_layers=2), "lacks"),
    (dict(max_position_embeddings=16), "position_embeddings"),
])
def test_weights_of_another_shape_are_refused(tmp_path, change, words):
    torch.save(BertModel(small_config(**change)).state_dict(), tmp_path / "weights.bin")
    assert words in refusal(tmp_path / "weights.bin")


class Harmful:
    """A pickle that would write a file when it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path):
    torch.save({"weight": Harmful(str(tmp_path / "harm"))}, tmp_path / "weights.bin")
    refusal(tmp_path / "weights.bin")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Harmful(str(tmp_path / "harm"))))
    refusal(tmp_path / "plain.bin")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04]\x94.", "half", "list", "numbers"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, saved, kind, content):
    path = tmp_path / f"weights.{kind}"
    if content == "half":
        state = {name: value.clone() for name, value in saved[1].items()}
        torch.save(state, path) if kind == "bin" else safetensors.torch.save_file(state, path)
        path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    elif content == "list":
        torch.save([torch.zeros(1)], path)
    elif content == "numbers":
        torch.save({"step": 1}, path)
    else:
        path.write_bytes(content)
    assert str(path) in refusal(path)


def test_a_missing_checkpoint_is_named(tmp_path):
    assert "no file" in refusal(tmp_path / "absent.bin")
    assert "neither model.safetensors nor pytorch_model.bin" in refusal(tmp_path)
