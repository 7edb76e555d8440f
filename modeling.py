"""BERT and its classifiers in PyTorch, on packed batches.

A batch is packed: the tokens of all its sequences follow one another in one row of T tokens (finetuning.data.PackedBatch),
and only attention and pooling see where a sequence ends. Nothing is computed for padding, and the result is that of the
padded batch. Parameters have the names that `transformers` gives them, so its folders load here and ours load there.

What can be chosen is a table: ACTIVATIONS, POOLINGS, LAYER_POOLINGS, FRACTION_POOLINGS, CLASSIFIERS; ATTENTIONS in
finetuning/attention.py. An entry more is a choice more of the flag that the table feeds (docs/extending.md).
"""
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from common.command_line import UserError
from finetuning.attention import attention, attention_varlen, fits_flash, has_flash
from finetuning.dropout import dropout
from finetuning.packed_weights import is_packed

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),  # Google's latest code; differs from gelu by up to 5e-4
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "tanh": torch.tanh,
}


# On a CPU rows of no token follow the tokens', up to a multiple of this: oneDNN prepares a product anew for each number of rows
ROWS = 64


class Dropout(nn.Dropout):
    """nn.Dropout, with random numbers that a CPU draws quickly; a compiled layer draws its own."""

    def forward(self, x):
        if self.training and 0 < self.p < 1 and x.device.type == "cpu" and not torch.compiler.is_compiling():
            return dropout(x, self.p)
        return super().forward(x)


class BertEmbeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, batch):
        embeddings = (self.word_embeddings(batch.input_ids) + self.token_type_embeddings(batch.segment_ids)
                      + self.position_embeddings(batch.position_ids))
        normal = self.LayerNorm(embeddings)
        if torch.is_autocast_enabled("cpu") and not normal.is_cuda:  # a GPU's LayerNorm is float32 under autocast
            normal = normal.to(torch.get_autocast_dtype("cpu"))
        return self.dropout(normal)


def project_together(layers, hidden):
    """What linear layers give of the same input, by one product with their joined weights, or with each one's packed ones."""
    if is_packed(layers[0]):
        return [layer(hidden) for layer in layers]
    joined = F.linear(hidden, torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))
    return joined.chunk(len(layers), dim=-1)


class BertSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.backend = None  # of ATTENTIONS; None: the device's
        self.attention = attention  # an attribute, so that compile_layers can put another in its place
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden, asking, batch):
        if asking is hidden:
            projected = project_together((self.query, self.key, self.value), hidden)
        else:
            projected = self.query(asking), *project_together((self.key, self.value), hidden)
        query, key, value = (x.unflatten(-1, (self.heads, -1)) for x in projected)
        dropout = self.dropout if self.training else 0.0
        return self.attention(query, key, value, batch, dropout, self.backend).flatten(-2)


class BertOutput(nn.Module):
    """What closes both halves of a layer: a projection, dropout, the residual connection, LayerNorm."""

    def __init__(self, config, input_size):
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden, residual):
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class BertDense(nn.Module):
    """A linear layer and its activation: a layer's intermediate one, the pooler, the start of the masked-LM head."""

    def __init__(self, input_size, output_size, activation):
        super().__init__()
        self.dense = nn.Linear(input_size, output_size)
        self.activation = activation

    def forward(self, hidden):
        return self.activation(self.dense(hidden))


class BertLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attention = nn.ModuleDict({"self": BertSelfAttention(config), "output": BertOutput(config, config.hidden_size)})
        self.intermediate = BertDense(config.hidden_size, config.intermediate_size, ACTIVATIONS[config.hidden_act])
        self.output = BertOutput(config, config.intermediate_size)

    def forward(self, hidden, batch, first_only=False):
        """The states [T, hidden] of all tokens, or [sequences, hidden] of the first one of each sequence."""
        asking = hidden.index_select(0, batch.cu_seqlens[:-1]) if first_only else hidden
        asking = self.attention.output(self.attention.self(hidden, asking, batch), asking)
        return self.output(self.intermediate(asking), asking)


class BertEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = self.compiled = False

    def fills_rows(self, device):
        """Whether rows of no token may follow the tokens': attention_grouped leaves them zero."""
        return device.type == "cpu" and self.layer[0].attention.self.backend in (None, "grouped")

    def forward(self, hidden, batch, num_layers, first_only):
        outputs, recomputed, layers = [], self.gradient_checkpointing and self.training, self.layer[:num_layers]  # None: all
        for layer in layers:
            only = first_only and layer is layers[-1]
            # `checkpoint` keeps the state of dropout
            hidden = checkpoint(layer, hidden, batch, only, use_reentrant=False) if recomputed else layer(hidden, batch, only)
            outputs.append(hidden)
        return outputs

    def compile_layers(self):
        """Compiles each layer, for the device that it lies on, but for attention that reads the list of lengths: they differ
        by batch, and each would be compiled anew."""
        flash = has_flash(self.layer[0].output.dense.weight.device)  # a compiled layer cannot ask
        uncompiled = torch.compiler.disable(attention)  # not as a decorator: it imports for seconds

        def attention_of_layer(query, key, value, batch, dropout, backend):
            if backend == "varlen" or not backend and flash and fits_flash(query):
                return attention_varlen(query, key, value, batch, dropout)
            return uncompiled(query, key, value, batch, dropout, backend)

        self.compiled = True
        for layer in self.layer:
            layer.attention.self.attention = attention_of_layer
            layer.compile(dynamic=True)


class BertModel(nn.Module):
    """The encoder (Devlin et al. 2019). Layers are counted from 0, the lowest, as in the paper's Table 3."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertDense(config.hidden_size, config.hidden_size, torch.tanh)  # of a [CLS] state
        self.frozen = []  # parts that stay in evaluation mode, see `train`

    def freeze(self, num_layers):
        """Fixes the embeddings and the lowest `num_layers` layers, which also run without dropout from now on."""
        self.frozen = [self.embeddings, *self.encoder.layer[:num_layers]]
        for part in self.frozen:
            part.requires_grad_(False).eval()

    def train(self, mode=True):
        super().train(mode)
        for part in self.frozen:  # nn.Module.train has just switched their dropout on
            part.eval()
        return self

    def forward(self, batch, num_layers=None, first_only=False):
        """The outputs, each [T, hidden], of the embeddings and (a list) of the lowest `num_layers` layers, by default all.
        first_only: of the highest of them the states of the sequences' first tokens alone, [sequences, hidden]: what a layer
        does beyond keys and values is then done for them only."""
        embedded = self.embeddings(batch)
        tokens = len(embedded)
        filled = F.pad(embedded, (0, 0, 0, -tokens % ROWS)) if self.encoder.fills_rows(embedded.device) else embedded
        return embedded, [states[:tokens] for states in self.encoder(filled, batch, num_layers, first_only)]


def initialize(module, config):
    """Draws linear and embedding weights from N(0, initializer_range), biases 0: what no checkpoint gives. An LSTM keeps
    PyTorch's own, uniform ones."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=config.initializer_range)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


class StructuredSelfAttention(nn.Module):
    """Sums of rows weighted by softmax(w2 tanh(w1 row)), one for each hop (Lin et al. 2017, without its penalty):
    [rows, size] -> [hops * size]."""

    def __init__(self, size, attention_size, hops=1):
        super().__init__()
        self.w1 = nn.Linear(size, attention_size, bias=False)
        self.w2 = nn.Linear(attention_size, hops, bias=False)

    def forward(self, rows):
        return (self.w2(torch.tanh(self.w1(rows))).softmax(dim=0).T @ rows).flatten()


class BiLSTMAttention(nn.Module):
    """A bidirectional LSTM over the tokens of each sequence, joined by structured self-attention: [T, size] and the list of
    the sequences' lengths -> [sequences, hops * 2 * lstm_hidden_size]."""

    def __init__(self, size, lstm_hidden_size, attention_size, hops):
        super().__init__()
        self.lstm = nn.LSTM(size, lstm_hidden_size, bidirectional=True)
        self.attention = StructuredSelfAttention(2 * lstm_hidden_size, attention_size, hops)

    def forward(self, states, lengths):
        with torch.autocast(states.device.type, enabled=False):  # not every CPU has an LSTM in bfloat16
            sequences = states.to(self.lstm.weight_hh_l0.dtype).split(lengths)
            # sorted here and cut by lengths of the host: torch would do both by tensors, for which the host waits for a GPU
            order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
            outputs, _ = self.lstm(nn.utils.rnn.pack_sequence([sequences[number] for number in order]))
            padded, _ = nn.utils.rnn.pad_packed_sequence(outputs, batch_first=True)
        rows = dict(zip(order, padded))
        return torch.stack([self.attention(rows[number][:length]) for number, length in enumerate(lengths)])


def segment_pooling(reduction):
    """A pooling over each sequence's tokens, in float32 at least: the kernel takes no bfloat16 (what follows casts it back)."""
    def pool(hidden, batch):  # unsafe: the lengths are not looked at first, for which the host would wait for a GPU
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return torch.segment_reduce(wide, reduction, lengths=batch.cu_seqlens.diff(), axis=0, unsafe=True)
    return pool


# --pooling_type: what stands for a sequence in a layer, (hidden [T, size], PackedBatch) -> [sequences, size]
POOLINGS = {
    "cls": lambda hidden, batch: hidden[batch.cu_seqlens[:-1]],
    "mean": segment_pooling("mean"),
    "max": segment_pooling("max"),
}
# --layer_pooling: several layers' states become one, [rows, layers, size] -> [rows, any width] (paper, section 5.3.2)
LAYER_POOLINGS = {
    "concat": lambda states: states.flatten(1),
    "mean": lambda states: states.mean(dim=1),
    "max": lambda states: states.amax(dim=1),
}
# --hierarchical: the features of a document's fractions become the document's (paper, section 5.3.1). Each entry makes, for
# features of `width` numbers and with --attention_size, a function or module [fractions, width] -> [width]
FRACTION_POOLINGS = {
    "mean": lambda width, attention_size: lambda fractions: fractions.mean(dim=0),
    "max": lambda width, attention_size: lambda fractions: fractions.amax(dim=0),
    "self_attention": StructuredSelfAttention,
}
CLASSIFIERS = ("linear", "bilstm_attention")  # --classifier
CHOICES = {"layer_pooling": LAYER_POOLINGS, "pooling_type": POOLINGS, "hierarchical": FRACTION_POOLINGS,
           "classifier": CLASSIFIERS}


class BertForSequenceClassification(nn.Module):
    """BERT and a classifier over features of chosen layers (paper, section 5.3).

    layers: [-2] the pooled output (tanh of a dense layer on the last [CLS]); [-1] all layers; else the layers listed, in
    that order (section 5.3.2). layer_pooling, pooling_type, hierarchical: names in LAYER_POOLINGS, POOLINGS and
    FRACTION_POOLINGS; hierarchical None: a document is one sequence (section 5.3.1). classifier: `linear`, one layer over
    these; or `bilstm_attention`, a biLSTM over the tokens' states before it (BERT-Feat, section 5.4.3), of lstm_hidden_size
    units each way, attention_size and attention_hops. bert: the BertModel of another classifier, which this one then shares.

    Layers above the highest chosen one are not run; they and an unused pooler keep their weights and are frozen. Raises
    UserError as `check_features` does.
    """

    def __init__(self, config, num_labels, layers=(-2,), layer_pooling="concat", pooling_type="cls", hierarchical=None,
                 classifier="linear", lstm_hidden_size=300, attention_size=350, attention_hops=30, bert=None):
        super().__init__()
        check_features(config, layers, layer_pooling, pooling_type, hierarchical, classifier)
        self.use_pooler = list(layers) == [-2]
        self.layers = list(range(config.num_hidden_layers)) if list(layers) == [-1] else list(layers)
        self.num_layers = config.num_hidden_layers if self.use_pooler else max(self.layers) + 1
        self.pool_tokens, self.pool_layers = POOLINGS[pooling_type], LAYER_POOLINGS[layer_pooling]
        self.first_only = pooling_type == "cls" and classifier == "linear"  # of the highest layer only [CLS] is read
        # The order of what follows is the order in which random weights are drawn: another one would be another run.
        self.bert = bert or BertModel(config)
        self.dropout = Dropout(config.hidden_dropout_prob)
        width = self.pool_layers(torch.empty(1, len(self.layers), config.hidden_size)).shape[1]
        self.bilstm_attention = self.pool_fractions = None
        self.sequences_at_once = None  # in training; None: all of a batch
        if classifier == "bilstm_attention":
            self.bilstm_attention = BiLSTMAttention(width, lstm_hidden_size, attention_size, attention_hops)
            width = 2 * lstm_hidden_size * attention_hops
        if hierarchical:
            self.pool_fractions = FRACTION_POOLINGS[hierarchical](width, attention_size)
        self.classifier = nn.Linear(width, num_labels)
        for part in self.children():
            if part is not bert:
                initialize(part, config)
        self.bert.encoder.layer[self.num_layers:].requires_grad_(False)
        self.bert.pooler.requires_grad_(self.use_pooler)

    def forward(self, batch):
        """Logits [documents, labels], float32, of a PackedBatch."""
        return self.classifier(self.dropout(self.features(batch))).float()  # also under autocast: the loss is float32

    def features(self, batch):
        """What the linear layer sees of each document: [documents, width]."""
        if self.training and self.sequences_at_once and len(batch.lengths) > self.sequences_at_once:
            # A part keeps its features alone and is computed again in the backward pass: a long document fits a GPU. With the
            # same dropout, as it is given a tensor: `checkpoint` keeps the random state of such tensors' devices.
            sequences = torch.cat([checkpoint(lambda part, _: self.sequence_features(part), part, part.input_ids,
                                              use_reentrant=False) for part in batch.parts(self.sequences_at_once)])
        else:
            sequences = self.sequence_features(batch)
        if self.pool_fractions is None:
            return sequences
        return torch.stack([self.pool_fractions(fractions) for fractions in sequences.split(batch.fractions)])

    def sequence_features(self, batch):
        """The same of each sequence: [sequences, width]."""
        _, outputs = self.bert(batch, self.num_layers, first_only=self.first_only)
        if self.use_pooler:
            return self.bert.pooler(outputs[-1])
        chosen = [outputs[layer] for layer in self.layers]
        if self.bilstm_attention:
            return self.bilstm_attention(self.pool_layers(torch.stack(chosen, dim=1)), batch.lengths)
        return self.pool_layers(torch.stack([hidden if self.first_only and hidden is outputs[-1] else
                                             self.pool_tokens(hidden, batch) for hidden in chosen], dim=1))


class MultiTaskModel(nn.Module):
    """Classifiers of several tasks (or of one) that share one encoder (paper, section 5.5)."""

    def __init__(self, classifiers):
        super().__init__()
        self.classifiers = nn.ModuleList(classifiers)

    def forward(self, batch, task):
        """Logits [documents, labels of the task]. task: the index of its classifier."""
        return self.classifiers[task](batch)


def check_choices(chosen, where):
    """Raises UserError, its text starting with `where`, where a flag of CHOICES has a value in the dict `chosen` that its
    table lacks; None is --hierarchical's off."""
    for flag, table in CHOICES.items():
        if chosen[flag] not in table and (flag, chosen[flag]) != ("hierarchical", None):
            raise UserError(f"{where}{flag} {chosen[flag]}: there is {', '.join(table)}")


def check_features(config, layers, layer_pooling, pooling_type, hierarchical=None, classifier="linear"):
    """Raises UserError where the flags of the same names ask for features that there are not, or that the model has not."""
    check_choices({"layer_pooling": layer_pooling, "pooling_type": pooling_type, "hierarchical": hierarchical,
                   "classifier": classifier}, "--")
    top = config.num_hidden_layers - 1
    words, pooled_output, all_tokens = f"--layers {' '.join(map(str, layers))}", list(layers) == [-2], classifier != "linear"
    none = f"the pooled output (--layers -2) has none: add for example --layers {top}"
    for wrong, message in (
            (len(layers) > 1 and min(layers) < 0, f"{words}: -1 (all) and -2 (pooled output) stand alone"),
            (not -2 <= min(layers) <= max(layers) <= top,
             f"{words}: this model has the layers 0 to {top}; -1 means all, -2 the pooled output"),
            (len(set(layers)) < len(layers), f"{words}: a layer is named twice"),
            (all_tokens and pooled_output, f"--classifier {classifier} reads the tokens' states of chosen layers, {none}"),
            (all_tokens and pooling_type != "cls",
             f"--pooling_type {pooling_type} is not used with --classifier {classifier}, which sees every token: leave it out"),
            (pooled_output and pooling_type != "cls",
             f"--pooling_type {pooling_type} pools the tokens of chosen layers, {none}"),
            (len(layers) == 1 and layers[0] != -1 and layer_pooling != "concat",
             f"--layer_pooling {layer_pooling} joins several layers, --layers names one: name more or leave it out")):
        if wrong:
            raise UserError(message)


class BertForPreTraining(nn.Module):
    """BERT with the masked-LM and next-sentence heads that further pre-training leaves (Devlin et al. 2019)."""

    def __init__(self, config):
        super().__init__()
        self.bert = BertModel(config)
        self.cls = nn.ModuleDict({"predictions": BertMaskedLMHead(config),
                                  "seq_relationship": nn.Linear(config.hidden_size, 2)})
        initialize(self, config)
        # One tensor under two names, as in TensorFlow, where the decoder has no weights of its own.
        self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight
        self.cls.predictions.decoder.bias = self.cls.predictions.bias

    def forward(self, batch):
        """(Hidden states: list of [T, hidden], the embeddings' first; pooled output [sequences, hidden]; masked-LM logits
        [T, vocabulary]; next-sentence logits [sequences, 2])."""
        embedded, outputs = self.bert(batch)
        pooled = self.bert.pooler(outputs[-1][batch.cu_seqlens[:-1]])
        return [embedded, *outputs], pooled, self.cls.predictions(outputs[-1]), self.cls.seq_relationship(pooled)


class BertMaskedLMHead(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transform = BertMaskedLMTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden):
        return self.decoder(self.transform(hidden))


class BertMaskedLMTransform(BertDense):
    def __init__(self, config):
        super().__init__(config.hidden_size, config.hidden_size, ACTIVATIONS[config.hidden_act])
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden):
        return self.LayerNorm(super().forward(hidden))
