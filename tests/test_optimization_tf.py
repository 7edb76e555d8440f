"""AdamWeightDecay and its schedule against their formulas in numpy."""
import numpy as np
import pytest
import tensorflow as tf

from pretraining.optimization_tf import AdamWeightDecay, is_decayed, learning_rate_at


@pytest.mark.parametrize("step, rate", [(0, 0.0), (1, 1e-5), (9, 9e-5), (10, 9e-5), (50, 5e-5), (99, 1e-6), (100, 0.0),
                                        (150, 0.0)])
def test_rate_rises_over_the_warm_up_then_falls_to_zero(step, rate):
    found = learning_rate_at(tf.constant(step, tf.int64), 1e-4, num_train_steps=100, num_warmup_steps=10)
    np.testing.assert_allclose(found, rate, rtol=1e-5, atol=1e-12)


def test_rate_without_warm_up_starts_at_its_peak():
    assert learning_rate_at(tf.constant(0, tf.int64), 1e-4, 100, 0).numpy() == np.float32(1e-4)


@pytest.mark.parametrize("name, decayed", [("bert/encoder/layer_0/output/dense/kernel", True),
                                           ("bert/encoder/layer_0/output/dense/bias", False),
                                           ("bert/embeddings/LayerNorm/gamma", False),
                                           ("cls/predictions/output_bias", False),
                                           ("cls/seq_relationship/output_weights", True)])
def test_weight_decay_spares_layer_norm_and_biases(name, decayed):
    assert is_decayed(name) == decayed


def numpy_updates(values, gradients_by_step, peak, total, warmup):
    """The same optimizer in float64, written from its formulas; yields (values, gradient norm) after each update."""
    values = {name: value.astype(np.float64) for name, value in values.items()}
    first = {name: np.zeros_like(value) for name, value in values.items()}
    second = {name: np.zeros_like(value) for name, value in values.items()}
    for step, gradients in enumerate(gradients_by_step):
        rate = peak * step / warmup if step < warmup else peak * (1 - step / total)
        norm = np.sqrt(sum(np.sum(np.square(gradient.astype(np.float64))) for gradient in gradients.values()))
        for name, gradient in gradients.items():
            gradient = gradient / max(norm, 1.0)
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient ** 2
            update = first[name] / (np.sqrt(second[name]) + 1e-6)
            values[name] = values[name] - rate * (update + (0.0 if "bias" in name else 0.01) * values[name])
        yield dict(values), norm


@pytest.mark.parametrize("scale", [0.01, 10.0], ids=["below the clipping norm", "clipped"])
def test_updates_equal_the_formulas_to_1e5(scale):
    random = np.random.default_rng(0)
    values = {"a/kernel": random.normal(size=(5, 3)).astype(np.float32), "a/bias": np.ones(3, np.float32)}
    steps = [{name: (scale * random.normal(size=value.shape)).astype(np.float32) for name, value in values.items()}
             for _ in range(8)]
    variables = {name: tf.Variable(value) for name, value in values.items()}
    optimizer = AdamWeightDecay(variables, 0.1, num_train_steps=10, num_warmup_steps=3)
    for gradients, (expected, expected_norm) in zip(steps, numpy_updates(values, steps, 0.1, 10, 3)):
        norm = optimizer.apply([tf.constant(gradient) for gradient in gradients.values()])
        np.testing.assert_allclose(norm, expected_norm, rtol=1e-5)
        for name, variable in variables.items():
            np.testing.assert_allclose(variable.numpy(), expected[name], rtol=1e-5, atol=1e-6)
    assert optimizer.global_step.numpy() == 8


def test_going_on_from_its_state_equals_never_having_stopped():
    gradients = [[tf.constant([0.5, -0.2])], [tf.constant([0.1, 0.3])], [tf.constant([-0.4, 0.3])]]
    straight = {"w": tf.Variable([1.0, 2.0])}
    optimizer = AdamWeightDecay(straight, 0.1, 10, 2)
    for gradient in gradients[:2]:
        optimizer.apply(gradient)
    state = {name: variable.numpy() for name, variable in optimizer.state().items()}
    assert sorted(state) == ["global_step", "w/adam_m", "w/adam_v"]
    resumed = {"w": tf.Variable(straight["w"].numpy())}
    AdamWeightDecay(resumed, 0.1, 10, 2, state).apply(gradients[2])
    optimizer.apply(gradients[2])
    assert resumed["w"].numpy().tobytes() == straight["w"].numpy().tobytes()
