"""BERT with its two pre-training heads in TensorFlow 2, with google-research/bert's variable names.

The weights are plain float32 `tf.Variable`s, kept by name (pretraining/checkpoints.py reads and writes them):

    config = BertConfig.from_json_file("uncased_L-12_H-768_A-12/bert_config.json")
    values = read_checkpoint("uncased_L-12_H-768_A-12/bert_model.ckpt")
    model = BertForPreTraining(config, initial_values(config, seed=0) | fitting_values(config, values, "my checkpoint"))
    hidden_states = model.encode(input_ids, input_mask, segment_ids)
"""
import functools
import math
import zlib

import tensorflow as tf

INPUTS = ("input_ids", "input_mask", "segment_ids", "position_ids", "sequence_ids")  # of the encoder; the last two if packed
MASKED_SCORE = -10000.0  # added to the attention score of padding; google-research/bert's, so parity needs this one


def variable_shapes(config):
    """Name -> shape (tuple) of every variable of BERT with its pre-training heads, in google-research/bert's order."""
    hidden, inner = config.hidden_size, config.intermediate_size

    def dense(name, rows, columns):
        return {f"{name}/kernel": (rows, columns), f"{name}/bias": (columns,)}

    def layer_norm(name):
        return {f"{name}/LayerNorm/beta": (hidden,), f"{name}/LayerNorm/gamma": (hidden,)}

    shapes = {"bert/embeddings/word_embeddings": (config.vocab_size, hidden),
              "bert/embeddings/token_type_embeddings": (config.type_vocab_size, hidden),
              "bert/embeddings/position_embeddings": (config.max_position_embeddings, hidden), **layer_norm("bert/embeddings")}
    for i in range(config.num_hidden_layers):
        layer = f"bert/encoder/layer_{i}"
        for part in ("query", "key", "value"):
            shapes |= dense(f"{layer}/attention/self/{part}", hidden, hidden)
        shapes |= dense(f"{layer}/attention/output/dense", hidden, hidden) | layer_norm(f"{layer}/attention/output")
        shapes |= dense(f"{layer}/intermediate/dense", hidden, inner)
        shapes |= dense(f"{layer}/output/dense", inner, hidden) | layer_norm(f"{layer}/output")
    shapes |= dense("bert/pooler/dense", hidden, hidden)
    shapes |= dense("cls/predictions/transform/dense", hidden, hidden) | layer_norm("cls/predictions/transform")
    return shapes | {"cls/predictions/output_bias": (config.vocab_size,),
                     "cls/seq_relationship/output_weights": (2, hidden), "cls/seq_relationship/output_bias": (2,)}


def initial_values(config, seed, names=None):
    """Name -> tensor of a new model's variables, all or those of `names`: matrices from a normal distribution of deviation
    initializer_range, cut at two deviations; LayerNorm gammas 1; all else 0. Each depends on `seed` and its own name only."""
    def value(name, shape):
        if name.endswith("/gamma"):
            return tf.ones(shape)
        if len(shape) == 1:
            return tf.zeros(shape)
        name_seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
        return tf.random.stateless_truncated_normal(shape, seed=[seed, name_seed], stddev=config.initializer_range)
    return {name: value(name, shape) for name, shape in variable_shapes(config).items() if names is None or name in names}


@tf.custom_gradient
def gelu(x):
    """The gelu by the error function, of float32 or bfloat16 numbers, computed in float32. What is kept for the gradient is its
    slope: TensorFlow's own goes over the numbers three times as often, and in bfloat16 slowly."""
    wide = tf.cast(x, tf.float32)
    share = 0.5 * tf.math.erfc(wide * -math.sqrt(0.5))  # of a normal distribution below x
    slope = tf.cast(share + wide * tf.exp(-0.5 * tf.square(wide)) * (1.0 / math.sqrt(2.0 * math.pi)), x.dtype)
    return tf.cast(wide * share, x.dtype), lambda upstream: upstream * slope


gelu_by_tanh = functools.partial(tf.nn.gelu, approximate=True)  # google-research/bert's latest; the authors' is by erf
ACTIVATIONS = {"gelu": gelu, "gelu_new": gelu_by_tanh, "gelu_pytorch_tanh": gelu_by_tanh, "relu": tf.nn.relu,
               "tanh": tf.tanh}


@tf.custom_gradient
def cross_entropy(logits, labels):
    """The losses [n] of float32 logits [n, classes], labels int32 [n]. TensorFlow's own, where it must be deterministic, goes
    over a vocabulary's logits twice as often."""
    highest = tf.reduce_max(logits, -1, keepdims=True)
    shares = tf.exp(logits - highest)
    totals = tf.reduce_sum(shares, -1, keepdims=True)
    at_labels = tf.gather(logits, labels, batch_dims=1)

    def gradient(upstream):
        upstream = upstream[:, tf.newaxis]
        return shares * (upstream / totals) - tf.one_hot(labels, tf.shape(logits)[1]) * upstream, None
    return tf.math.log(totals[:, 0]) + highest[:, 0] - at_labels, gradient


class BertForPreTraining:
    """BERT and the heads of masked LM and next sentence prediction (google-research/bert, modeling.py and run_pretraining.py),
    as functions of `variables`, a dict name -> float32 tf.Variable.

    values: name -> initial value of every variable (see `initial_values`, `read_checkpoint`).
    compute_dtype: "float32", or "bfloat16": matrix products and activations in bfloat16; LayerNorm, softmax and the losses stay
    in float32.
    next_sentence: whether next sentence prediction is a task. If not, its head and the pooler are not in `trained`: they have
    no gradient, and weight decay alone would wear them off.
    """

    def __init__(self, config, values, compute_dtype="float32", next_sentence=True):
        self.config, self.next_sentence = config, next_sentence
        self.compute_dtype = tf.as_dtype(compute_dtype)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.variables = {name: tf.Variable(values[name], name=name, dtype=tf.float32, shape=shape)
                          for name, shape in variable_shapes(config).items()}
        self.trained = {name: variable for name, variable in self.variables.items()
                        if next_sentence or not name.startswith(("bert/pooler/", "cls/seq_relationship/"))}

    def weight(self, name):
        """The variable `name` in the type that is computed in. It is cast at each use, and stays float32 itself: most updates
        are smaller than the distance of two bfloat16 numbers."""
        return tf.cast(self.variables[name], self.compute_dtype)

    def dense(self, x, name):
        """x [n, rows] times the kernel [rows, columns] plus the bias of layer `name`: [n, columns]."""
        return tf.nn.bias_add(tf.matmul(x, self.weight(f"{name}/kernel")), self.weight(f"{name}/bias"))

    def layer_norm(self, x, name):
        """x [..., hidden] with mean 0 and variance 1 over its last axis, times gamma plus beta, in float32."""
        wide = tf.cast(x, tf.float32)
        mean, variance = tf.nn.moments(wide, [-1], keepdims=True)
        normal = tf.nn.batch_normalization(wide, mean, variance, self.variables[f"{name}/LayerNorm/beta"],
                                           self.variables[f"{name}/LayerNorm/gamma"], self.config.layer_norm_eps)
        return tf.cast(normal, self.compute_dtype)

    def encode(self, input_ids, input_mask, segment_ids, position_ids=None, sequence_ids=None, training=False, seed=None):
        """The hidden states, a list of num_hidden_layers + 1 tensors [batch, length, hidden], the embeddings' output first.

        input_ids, input_mask (1 token, 0 padding), segment_ids: int32 [batch, length].
        position_ids, sequence_ids: int32 [batch, length] where a row holds several sequences (pretraining/packing.py), each of
        which attends to itself alone.
        training: dropout with the config's probabilities, its random numbers a function of `seed` (int32 [2]) alone.
        """
        config, heads = self.config, self.config.num_attention_heads
        batch, length, head_size = tf.shape(input_ids)[0], tf.shape(input_ids)[1], config.hidden_size // heads
        sites = iter(range(3 * config.num_hidden_layers + 1))

        def dropout(x, rate):
            site = next(sites)  # counted also where nothing is dropped: a rate of 0 leaves the other sites' draws alone
            if not training or rate == 0:
                return x
            site_seed = tf.random.experimental.stateless_fold_in(seed, site)
            return tf.nn.experimental.stateless_dropout(x, rate, site_seed, rng_alg="philox")

        def by_head(x):
            return tf.transpose(tf.reshape(x, [batch, length, heads, head_size]), [0, 2, 1, 3])

        def attention(x, layer, mask_scores):
            query, key, value = (by_head(self.dense(x, f"{layer}/attention/self/{part}")) for part in ("query", "key", "value"))
            scores = tf.matmul(query, key, transpose_b=True) * (1.0 / math.sqrt(head_size))  # scaled last, as Google's
            probabilities = tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32) + mask_scores), x.dtype)
            probabilities = dropout(probabilities, config.attention_probs_dropout_prob)
            context = tf.transpose(tf.matmul(probabilities, value), [0, 2, 1, 3])
            return tf.reshape(context, [batch * length, config.hidden_size])

        # the type embedding as a product with one-hot rows: its gradient is then a matrix, not a scatter into 2 rows
        types = tf.one_hot(tf.reshape(segment_ids, [-1]), config.type_vocab_size)
        embeddings = tf.gather(self.variables["bert/embeddings/word_embeddings"], input_ids)
        embeddings += tf.reshape(tf.matmul(types, self.variables["bert/embeddings/token_type_embeddings"]),
                                 [batch, length, config.hidden_size])
        places = self.variables["bert/embeddings/position_embeddings"]
        embeddings += places[:length] if position_ids is None else tf.gather(places, position_ids)
        x = self.layer_norm(tf.reshape(embeddings, [batch * length, config.hidden_size]), "bert/embeddings")
        x = dropout(x, config.hidden_dropout_prob)  # x is [batch * length, hidden]: each product is one of two matrices
        attended = input_mask[:, tf.newaxis, tf.newaxis, :] > 0
        if sequence_ids is not None:
            attended &= (sequence_ids[:, :, tf.newaxis] == sequence_ids[:, tf.newaxis, :])[:, tf.newaxis]
        mask_scores = tf.where(attended, 0.0, MASKED_SCORE)  # [batch, 1, 1 or length, length]
        layers = [x]
        for i in range(config.num_hidden_layers):
            layer = f"bert/encoder/layer_{i}"
            attended = self.dense(attention(x, layer, mask_scores), f"{layer}/attention/output/dense")
            x = self.layer_norm(dropout(attended, config.hidden_dropout_prob) + x, f"{layer}/attention/output")
            inner = self.activation(self.dense(x, f"{layer}/intermediate/dense"))
            output = self.dense(inner, f"{layer}/output/dense")
            x = self.layer_norm(dropout(output, config.hidden_dropout_prob) + x, f"{layer}/output")
            layers.append(x)
        return [tf.reshape(layer, [batch, length, config.hidden_size]) for layer in layers]

    def masked_lm_logits(self, states):
        """Float32 logits [n, vocabulary] of n tokens' last hidden states [n, hidden]."""
        x = self.activation(self.dense(states, "cls/predictions/transform/dense"))
        x = self.layer_norm(x, "cls/predictions/transform")
        logits = tf.matmul(x, self.weight("bert/embeddings/word_embeddings"), transpose_b=True)  # no matrix of its own
        return tf.cast(logits, tf.float32) + self.variables["cls/predictions/output_bias"]

    def pooled(self, states):
        """The pooled output [n, hidden] of n [CLS] tokens' last hidden states [n, hidden]."""
        return tf.tanh(self.dense(states, "bert/pooler/dense"))

    def next_sentence_logits(self, pooled_output):
        """Float32 logits [n, 2] (0: the second text follows the first, 1: it is random) of the pooled output [n, hidden]."""
        logits = tf.matmul(pooled_output, self.weight("cls/seq_relationship/output_weights"), transpose_b=True)
        return tf.cast(logits, tf.float32) + self.variables["cls/seq_relationship/output_bias"]

    def pretraining_sums(self, features, training=False, seed=None):
        """The two tasks' sums over the examples of a batch, each a float32 scalar, by name: masked_lm_loss and
        masked_lm_correct, weighted with masked_lm_weights; next_sentence_loss and next_sentence_correct, weighted with
        example_weights; without `next_sentence` the first two alone. Sums, so that any split of a batch over devices adds up to
        the same.

        features: a micro-batch of `split`, or of `pack` (pretraining/records.py, packing.py).
        """
        layers = self.encode(*(features.get(name) for name in INPUTS), training, seed)
        states = tf.reshape(layers[-1], [-1, self.config.hidden_size])

        def weighted(task, logits, labels, weights):
            losses = cross_entropy(logits, labels)
            correct = tf.cast(tf.argmax(logits, -1, output_type=tf.int32) == labels, tf.float32)
            return {f"{task}_loss": tf.reduce_sum(weights * losses), f"{task}_correct": tf.reduce_sum(weights * correct)}

        logits = self.masked_lm_logits(tf.gather(states, features["masked_lm_positions"]))
        sums = weighted("masked_lm", logits, features["masked_lm_ids"], features["masked_lm_weights"])
        if not self.next_sentence:
            return sums
        logits = self.next_sentence_logits(self.pooled(tf.gather(states, features["first_tokens"])))
        return sums | weighted("next_sentence", logits, features["next_sentence_labels"][:, 0], features["example_weights"])
