"""Records side by side in rows: losses and gradients of the padded batch, for every kind of record; how few rows there are."""
import numpy as np
import pytest
import tensorflow as tf

from common.configuration import BertConfig
from pretraining.modeling_tf import BertForPreTraining, initial_values
from pretraining.packing import best_fit, pack
from pretraining.records import split

LENGTH, PREDICTIONS = 16, 3
CONFIG = BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
                    max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
                    initializer_range=0.3)


def batch_of(sizes, seed=0):
    """The features of records with so many tokens, two of three places masked."""
    random, n = np.random.default_rng(seed), len(sizes)
    mask = (np.arange(LENGTH) < np.array(sizes)[:, np.newaxis]).astype(np.int32)
    return {"input_ids": random.integers(0, 50, (n, LENGTH)).astype(np.int32), "input_mask": mask,
            "segment_ids": random.integers(0, 2, (n, LENGTH)).astype(np.int32),
            "masked_lm_positions": (random.integers(0, 99, (n, PREDICTIONS)) % np.maximum(sizes, 1)[:, None]).astype(np.int32),
            "masked_lm_ids": random.integers(0, 50, (n, PREDICTIONS)).astype(np.int32),
            "masked_lm_weights": np.tile(np.float32([1, 0, 0.5]), (n, 1)), "example_weights": np.ones(n, np.float32),
            "next_sentence_labels": random.integers(0, 2, (n, 1)).astype(np.int32)}


def with_holes(batch):
    """Padding inside, before and after what is masked, and under a masked place; a record without a token."""
    mask = batch["input_mask"].copy()
    mask[0, 2:4], mask[1, 0], mask[2, :] = 0, 0, 0
    positions = batch["masked_lm_positions"].copy()
    positions[3] = LENGTH - 1
    return batch | {"input_mask": mask, "masked_lm_positions": positions}


def micro_batches(batch, number):
    split_batch = split({name: tf.constant(value) for name, value in batch.items()}, 1, number)
    return {name: tensor[0] for name, tensor in split_batch.items()}


SHORT = batch_of([5, 9, 16, 3, 7, 4, 1, 12])
BATCHES = {"short and long": SHORT, "all full": batch_of([LENGTH] * 8), "with holes": with_holes(SHORT),
           "nothing masked": SHORT | {"masked_lm_weights": np.zeros((8, PREDICTIONS), np.float32)},
           "examples that only fill": SHORT | {"example_weights": np.float32([1, 1, 1, 0, 1, 0, 1, 1])}}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_losses_and_gradients_are_those_of_the_padded_batch_to_1e5(batch):
    """Two micro-batches, which take different numbers of rows."""
    model = BertForPreTraining(CONFIG, initial_values(CONFIG, 0))
    padded = micro_batches(batch, 2)
    packed = pack(padded)
    assert packed["input_ids"].shape[1] <= padded["input_ids"].shape[1]
    for i in range(2):
        found = []
        for features in (padded, packed):
            with tf.GradientTape() as tape:
                sums = model.pretraining_sums({name: tensor[i] for name, tensor in features.items()})
                loss = sums["masked_lm_loss"] + sums["next_sentence_loss"]
            gradients = tape.gradient(loss, list(model.variables.values()))
            found.append([*sums.values(), *map(tf.convert_to_tensor, gradients)])
        for plain, other in zip(*found):
            np.testing.assert_allclose(other, plain, rtol=1e-5, atol=2e-5)
        assert bool(found[0][0] > 1) == bool(np.any(batch["masked_lm_weights"]))


def test_each_token_is_in_one_row_and_rows_are_few():
    lengths = np.random.default_rng(0).integers(5, 129, 1000)
    rows, columns = best_fit(lengths, 128)
    taken = np.zeros((rows.max() + 1, 128), int)
    for size, row, column in zip(lengths, rows, columns):
        taken[row, column:column + size] += 1
    assert taken.max() == 1 and taken.sum() == lengths.sum()
    assert len(taken) <= 1.05 * lengths.sum() / 128


def test_the_rows_of_a_batch_hold_no_more_than_its_tokens_need():
    packed = pack(micro_batches(SHORT, 1))
    assert packed["input_ids"].shape == (1, 4, LENGTH)  # 57 tokens
    assert packed["masked_lm_ids"].shape == (1, 16)  # two of three have a weight
