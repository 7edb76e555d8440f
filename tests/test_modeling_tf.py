"""BERT in TensorFlow against a forward pass in numpy, its names against Google's, checkpoints that survive."""
import functools
import math
import os
import resource

import numpy as np
import pytest
import tensorflow as tf

from common.command_line import UserError
from common.configuration import BertConfig
from common.files import locked
from pretraining.checkpoints import fitting_values, read_checkpoint, write_checkpoint
from pretraining.modeling_tf import ACTIVATIONS, BertForPreTraining, cross_entropy, gelu, initial_values, variable_shapes

CONFIG = BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
                    max_position_embeddings=16)


def rough_values(config, seed=0):
    """Values that no mistake can hide behind: no bias is 0, no gamma is 1."""
    random = np.random.default_rng(seed)
    return {name: (0.2 * random.normal(size=shape) + name.endswith("gamma")).astype(np.float32)
            for name, shape in variable_shapes(config).items()}


def example_batch():
    random = np.random.default_rng(1)
    mask = np.array([[1] * 10, [1] * 6 + [0] * 4], np.int32)
    return {"input_ids": random.integers(0, 50, (2, 10)).astype(np.int32), "input_mask": mask,
            "segment_ids": (np.arange(10) >= 4).astype(np.int32) * mask}


def numpy_bert(config, values, input_ids, input_mask, segment_ids):
    """BERT's hidden states and pooled output in float64, one head and one sequence at a time (Devlin et al. 2019)."""
    v = {name: value.astype(np.float64) for name, value in values.items()}

    def dense(x, name):
        return x @ v[f"{name}/kernel"] + v[f"{name}/bias"]

    def layer_norm(x, name):
        normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return normal * v[f"{name}/LayerNorm/gamma"] + v[f"{name}/LayerNorm/beta"]

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    size = config.hidden_size // config.num_attention_heads
    states = [[] for _ in range(config.num_hidden_layers + 1)]
    for ids, mask, types in zip(input_ids, input_mask, segment_ids):
        x = v["bert/embeddings/word_embeddings"][ids] + v["bert/embeddings/token_type_embeddings"][types]
        x = layer_norm(x + v["bert/embeddings/position_embeddings"][:len(ids)], "bert/embeddings")
        states[0].append(x)
        for i in range(config.num_hidden_layers):
            layer = f"bert/encoder/layer_{i}"
            query, key, value = (dense(x, f"{layer}/attention/self/{part}") for part in ("query", "key", "value"))
            context = np.zeros_like(x)
            for head in range(config.num_attention_heads):
                own = slice(head * size, (head + 1) * size)
                scores = query[:, own] @ key[:, own].T / math.sqrt(size) + np.where(mask == 1, 0, -10000.0)
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                context[:, own] = weights / weights.sum(-1, keepdims=True) @ value[:, own]
            x = layer_norm(x + dense(context, f"{layer}/attention/output/dense"), f"{layer}/attention/output")
            inner = gelu(dense(x, f"{layer}/intermediate/dense"))
            x = layer_norm(x + dense(inner, f"{layer}/output/dense"), f"{layer}/output")
            states[i + 1].append(x)
    pooled = np.tanh(dense(np.array(states[-1])[:, 0], "bert/pooler/dense"))
    return np.array(states), pooled


def test_hidden_states_pooled_output_and_logits_equal_numpy_to_1e5():
    values, batch = rough_values(CONFIG), example_batch()
    model = BertForPreTraining(CONFIG, values)
    hidden_states = model.encode(**batch)
    pooled = model.pooled(hidden_states[-1][:, 0])
    expected_states, expected_pooled = numpy_bert(CONFIG, values, **batch)
    assert len(hidden_states) == CONFIG.num_hidden_layers + 1
    np.testing.assert_allclose(np.array(hidden_states), expected_states, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(pooled, expected_pooled, rtol=1e-4, atol=1e-5)
    positions = np.array([[1, 3, 0], [5, 2, 2]], np.int32)
    x = np.take_along_axis(expected_states[-1], positions[:, :, np.newaxis], 1)
    x = x @ values["cls/predictions/transform/dense/kernel"] + values["cls/predictions/transform/dense/bias"]
    x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    x = x * values["cls/predictions/transform/LayerNorm/gamma"] + values["cls/predictions/transform/LayerNorm/beta"]
    logits = x @ values["bert/embeddings/word_embeddings"].T + values["cls/predictions/output_bias"]
    chosen = tf.gather(hidden_states[-1], positions, batch_dims=1)
    np.testing.assert_allclose(model.masked_lm_logits(chosen), logits, rtol=1e-4, atol=1e-5)
    next_sentence = expected_pooled @ values["cls/seq_relationship/output_weights"].T
    np.testing.assert_allclose(model.next_sentence_logits(pooled),
                               next_sentence + values["cls/seq_relationship/output_bias"], rtol=1e-4, atol=1e-5)


def test_what_stands_in_the_padding_changes_nothing():
    model, batch = BertForPreTraining(CONFIG, rough_values(CONFIG)), example_batch()
    states = model.encode(**batch)
    other = batch | {"input_ids": np.where(batch["input_mask"] == 1, batch["input_ids"], 7).astype(np.int32)}
    other_states = model.encode(**other)
    np.testing.assert_array_equal(states[-1][0], other_states[-1][0])
    np.testing.assert_array_equal(states[-1][1, :6], other_states[-1][1, :6])


@pytest.mark.parametrize("name, formula", [
    ("gelu", lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))),
    ("gelu_new", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))),
    ("gelu_pytorch_tanh", lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))),
    ("relu", lambda x: max(x, 0.0)), ("tanh", math.tanh)])
def test_activations_equal_their_formulas(name, formula):
    points = np.linspace(-5, 5, 41)
    np.testing.assert_allclose(ACTIVATIONS[name](tf.constant(points, tf.float32)), [formula(x) for x in points],
                               rtol=1e-5, atol=1e-6)


def value_and_gradient(function, x, upstream):
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    return value.numpy().astype(np.float32), tape.gradient(value, x, upstream).numpy().astype(np.float32)


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("bfloat16", 0.01)])
def test_gelu_and_its_gradient_are_tensorflow_s(dtype, rtol):
    """In bfloat16 to one of its digits, of TensorFlow's in float32."""
    x = tf.cast(tf.linspace(-6.0, 6.0, 241), dtype)
    upstream = tf.cast(tf.linspace(1.0, 2.0, 241), dtype)
    plain = value_and_gradient(tf.nn.gelu, tf.cast(x, tf.float32), tf.cast(upstream, tf.float32))
    assert gelu(x).dtype == dtype
    for found, expected in zip(value_and_gradient(gelu, x, upstream), plain):
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol / 10)


def test_cross_entropy_and_its_gradient_are_tensorflow_s_to_1e5():
    """For labels that are as good as sure or impossible too."""
    logits = tf.constant(np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32) * [[1], [1], [9], [9], [99], [999]],
                         tf.float32)
    labels = tf.constant([3, 49, int(np.argmax(logits[2])), int(np.argmin(logits[3])), 0, 7])
    plain = functools.partial(tf.nn.sparse_softmax_cross_entropy_with_logits, labels)
    for found, expected in zip(value_and_gradient(lambda x: cross_entropy(x, labels), logits, tf.range(6.0)),
                               value_and_gradient(plain, logits, tf.range(6.0))):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_dropout_is_a_function_of_its_seed_and_off_outside_training():
    model, batch = BertForPreTraining(CONFIG, rough_values(CONFIG)), example_batch()
    first = model.encode(**batch, training=True, seed=[1, 2])[-1].numpy()
    assert first.tobytes() == model.encode(**batch, training=True, seed=[1, 2])[-1].numpy().tobytes()
    assert not np.allclose(first, model.encode(**batch, training=True, seed=[1, 3])[-1])
    assert not np.allclose(first, model.encode(**batch)[-1])
    embeddings = model.encode(**batch, training=True, seed=[1, 2])[0].numpy()
    dropped = np.mean(embeddings == 0.0)
    assert 0.05 < dropped < 0.15  # hidden_dropout_prob 0.1 of 480 values
    kept = embeddings != 0.0
    np.testing.assert_allclose(embeddings[kept], model.encode(**batch)[0].numpy()[kept] / 0.9, rtol=1e-5)


def test_bfloat16_stays_within_3_percent_of_float32():
    values, batch = initial_values(CONFIG, 0), example_batch()
    exact = BertForPreTraining(CONFIG, values).encode(**batch)[-1].numpy()
    states = BertForPreTraining(CONFIG, values, "bfloat16").encode(**batch)
    assert states[-1].dtype == tf.bfloat16
    error = np.linalg.norm(tf.cast(states[-1], tf.float32).numpy() - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.03


def test_bert_base_has_its_known_number_of_parameters():
    shapes = variable_shapes(BertConfig(vocab_size=30522))
    assert sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("bert/")) == 109_482_240
    assert len(shapes) == 5 + 12 * 16 + 2 + 4 + 3


def test_names_and_shapes_are_those_of_google_s_checkpoint(shared):
    prefix = str(shared / "goldens/pretraining/pretrain_init.ckpt")
    config = BertConfig.from_json_file(str(shared / "goldens/pretraining/bert_config.json"))
    assert variable_shapes(config) == {name: tuple(shape) for name, shape in tf.train.list_variables(prefix)}


def test_new_weights_are_cut_at_two_deviations_and_depend_on_the_seed():
    values = initial_values(CONFIG, 5)
    assert {name: tuple(value.shape) for name, value in values.items()} == variable_shapes(CONFIG)
    kernel = values["bert/encoder/layer_0/intermediate/dense/kernel"].numpy()
    assert 0.036 < np.abs(kernel).max() <= 0.04 and 0.016 < kernel.std() < 0.019  # 0.02 cut at 2: deviation 0.0176
    assert np.all(values["bert/pooler/dense/bias"] == 0) and np.all(values["bert/embeddings/LayerNorm/gamma"] == 1)
    np.testing.assert_array_equal(kernel, initial_values(CONFIG, 5)["bert/encoder/layer_0/intermediate/dense/kernel"])
    assert not np.allclose(kernel, initial_values(CONFIG, 6)["bert/encoder/layer_0/intermediate/dense/kernel"])
    assert not np.allclose(kernel, values["bert/encoder/layer_1/intermediate/dense/kernel"])


# ------------------------------------------------------------------------------------------------- checkpoints

def test_a_checkpoint_reads_back_bit_for_bit(tmp_path):
    values = {"bert/a/kernel": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32),
              "global_step": np.int64(7)}
    prefix = str(tmp_path / "model.ckpt-7")
    write_checkpoint(prefix, values)
    found = read_checkpoint(prefix)
    assert found.keys() == values.keys()
    assert all(found[name].dtype == values[name].dtype and np.array_equal(found[name], values[name]) for name in values)
    assert sorted(os.listdir(tmp_path)) == ["model.ckpt-7.data-00000-of-00001", "model.ckpt-7.index"]


@pytest.mark.parametrize("renamed", [0, 1])
def test_cut_down_while_files_get_their_names_the_index_is_absent(tmp_path, monkeypatch, renamed):
    prefix = str(tmp_path / "model.ckpt-1")
    write_checkpoint(prefix, {"a": np.ones(3, np.float32)})
    calls, replace = [], os.replace

    def stopping_replace(source, target):
        if len(calls) == renamed:
            raise KeyboardInterrupt
        calls.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopping_replace)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(prefix, {"a": np.zeros(3, np.float32)})
    assert not os.path.exists(f"{prefix}.index")


@pytest.mark.parametrize("words", ["No space left on device", "Disk quota exceeded"])
def test_no_space_left_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, words):
    """In the system's words, not in those that TensorFlow puts around them."""
    def no_space(*arguments, **options):
        place = "{{function_node __wrapped__SaveV2_dtypes_1_device_/job:localhost/replica:0/task:0/device:CPU:0}}"
        raise tf.errors.ResourceExhaustedError(None, None, f"{place} /x/model.ckpt-1.data; {words} [Op:SaveV2]")
    monkeypatch.setattr(tf.compat.v1.train.Saver, "save", no_space)
    with pytest.raises(UserError) as error:
        write_checkpoint(str(tmp_path / "model.ckpt-1"), {"a": np.ones(3, np.float32)})
    assert str(error.value) == (f"{tmp_path}/model.ckpt-1 cannot be written: {words}; free some space and run the same command "
                                "again, what was written before is untouched")
    assert not os.listdir(tmp_path)


def test_a_file_that_grows_too_large_is_one_line_and_leaves_nothing(tmp_path):
    """TensorFlow's own failure, by a limit on the size of files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(UserError, match="/model.ckpt-1 cannot be written: File too large; mend that and run the same"):
            write_checkpoint(str(tmp_path / "model.ckpt-1"), {"a": np.ones(100_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not os.listdir(tmp_path)


def test_what_a_killed_write_left_is_gone_after_the_next_and_two_do_not_meet(tmp_path):
    prefix, temporary = str(tmp_path / "model.ckpt-1"), tmp_path / ".model.ckpt-1.tmp"
    temporary.mkdir()
    (temporary / "model.ckpt-1.data-00000-of-00002").write_text("half")
    with locked(str(temporary), "taken"):
        with pytest.raises(UserError, match="model.ckpt-1 is being written by another command"):
            write_checkpoint(prefix, {"a": np.ones(3, np.float32)})
    write_checkpoint(prefix, {"a": np.ones(3, np.float32)})
    assert sorted(os.listdir(tmp_path)) == ["model.ckpt-1.data-00000-of-00001", "model.ckpt-1.index"]


@pytest.fixture
def checkpoint(tmp_path):
    prefix = str(tmp_path / "good.ckpt")
    write_checkpoint(prefix, {"a": np.arange(1000, dtype=np.float32)})
    return prefix


def test_what_is_no_checkpoint_is_named(tmp_path, checkpoint):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    (tmp_path / "text.ckpt.index").write_text("this is no index")
    for prefix, words in ((tmp_path / "absent.ckpt", "there is no checkpoint"), (tmp_path, "is a folder"),
                          (tmp_path / "pytorch_model.bin", "is no TensorFlow checkpoint"),
                          (tmp_path / "text.ckpt", "is no whole checkpoint"),
                          (f"{checkpoint}.index", f"give the prefix they share, {checkpoint}"),
                          (f"{checkpoint}.data-00000-of-00001", f"give the prefix they share, {checkpoint}")):
        with pytest.raises(UserError, match=words):
            read_checkpoint(str(prefix))


@pytest.mark.parametrize("damage", ["cut", "changed", "absent"])
def test_a_damaged_data_file_is_noticed(checkpoint, damage):
    path = f"{checkpoint}.data-00000-of-00001"
    content = bytearray(open(path, "rb").read())
    content[100] ^= 1
    os.unlink(path)
    if damage != "absent":
        with open(path, "wb") as file:
            file.write(content if damage == "changed" else content[:2000])
    with pytest.raises(UserError, match="is no whole checkpoint"):
        read_checkpoint(checkpoint)


def test_only_the_model_s_values_are_taken_from_a_checkpoint():
    values = rough_values(CONFIG)
    held = {name: value for name, value in values.items() if not name.startswith("cls/")}
    extra = {"bert/pooler/dense/bias/adam_m": np.ones(24, np.float32), "global_step": np.int64(3),
             "cls/squad/output_bias": np.zeros(2, np.float32)}
    assert fitting_values(CONFIG, held | extra, "x").keys() == held.keys()


@pytest.mark.parametrize("change, words", [
    ({"vocab_size": 51}, r"word_embeddings has the shape \[50, 24\], by the config \[51, 24\]"),
    ({"num_hidden_layers": 3}, "has 2 layers, the config 3"),
    ({"num_hidden_layers": 1}, "has 2 layers, the config 1")])
def test_a_config_that_does_not_fit_is_refused(change, words):
    config = BertConfig(**{**vars(CONFIG), **change})
    with pytest.raises(UserError, match=words):
        fitting_values(config, rough_values(CONFIG), "--init_checkpoint: x")


def test_a_checkpoint_without_bert_or_with_a_hole_is_refused():
    with pytest.raises(UserError, match="holds no BERT"):
        fitting_values(CONFIG, {"generator/kernel": np.ones(3)}, "x")
    values = rough_values(CONFIG)
    del values["bert/pooler/dense/bias"]
    with pytest.raises(UserError, match="lacks bert/pooler/dense/bias"):
        fitting_values(CONFIG, values, "x")
