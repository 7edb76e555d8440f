"""BertConfig, the shape of a BERT model, read by both frameworks (the file `bert_config.json` or `config.json`), and which
models are no BERT. Every script asks here."""
import dataclasses
import os
import re

from common.command_line import UserError
from common.files import check_schema, read_json, require_file, write_json

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "tanh")
# Beyond these a number is a slip, which would take gigabytes: BERT-large has 24 layers and 335 million parameters, MuRIL-large
# 506 million, and DeBERTa-v2-xxlarge, which is no plain BERT, 1.5 billion.
MAX_LAYERS, MAX_PARAMETERS = 1_000, 2_000_000_000
CONFIG_NAMES = ("config.json", "bert_config.json")  # in a folder, the first that is there

# Models that share BERT's files or its names of weights but compute something else -> what would do instead.
OTHER_MODELS = {
    "albert": "google/bert_uncased_L-4_H-512_A-8, a small BERT",
    "big_bird": "bert-base-uncased with --hierarchical or --trunc_medium, for long texts",
    "camembert": "bert-base-multilingual-cased",
    "convbert": "bert-base-uncased",
    "deberta": "bert-base-cased",
    "deberta-v2": "bert-large-cased",
    "distilbert": "bert-base-uncased, from which it was distilled, or google/bert_uncased_L-6_H-768_A-12, as small as it",
    "electra": "bert-base-uncased",
    "ernie": "bert-base-chinese or bert-base-uncased",
    "longformer": "bert-base-cased with --hierarchical or --trunc_medium, for long texts",
    "megatron-bert": "bert-large-uncased",
    "mobilebert": "google/bert_uncased_L-4_H-512_A-8, a small BERT",
    "modernbert": "bert-base-cased",
    "mpnet": "bert-base-uncased",
    "nezha": "bert-base-chinese",
    "roberta": "bert-base-cased",
    "squeezebert": "bert-base-uncased",
    "xlm-roberta": "bert-base-multilingual-cased",
}
# A part of a weight's name, or a key of a configuration without model_type, that only this model has
SIGNS = {"albert_layer_groups": "albert", "inner_group_0": "albert", "num_hidden_groups": "albert", "q_lin": "distilbert",
         "n_heads": "distilbert", "embeddings_project": "electra", "rel_embeddings": "deberta", "task_type_embeddings": "ernie",
         "task_type_vocab_size": "ernie"}
# Keys that change what is computed, with the value that BERT has; null says the same
PLAIN = {"position_embedding_type": "absolute", "is_decoder": False, "is_encoder_decoder": False, "add_cross_attention": False,
         "chunk_size_feed_forward": 0, "pruned_heads": {}, "use_task_id": False, "relative_attention": False,
         "use_relative_positions": False, "directionality": "bidi", "pooler_type": "first_token_transform"}
KEPT = ("pad_token_id",)  # of the other keys: the rest belongs to the file's head, its storage or its library


def refuse_other_model(kind, where):
    """Raises UserError, its text starting with `where`, for a kind of model that is no BERT."""
    if kind and kind != "bert":
        instead = f"; take {OTHER_MODELS[kind]}" if kind in OTHER_MODELS else "; take a BERT, such as bert-base-uncased"
        raise UserError(f"{where} is a model of the kind {kind}, which computes other things than BERT{instead}")


def check_beside(folder, flag):
    """Raises UserError where the config.json beside weights, whatever configuration is used, says that they are no BERT's."""
    path = os.path.join(folder, CONFIG_NAMES[0])
    if os.path.isfile(path):
        check_plain(read_json(path, {}), f"{flag}: {path}")


def find_config(folders):
    """The configuration in one of the folders, or None."""
    return next(filter(os.path.isfile, (os.path.join(folder, name) for folder in folders for name in CONFIG_NAMES)), None)


@dataclasses.dataclass
class BertConfig:
    """The fields of google-research/bert's bert_config.json, and layer_norm_eps, with BERT-base's values.

    `hidden_act` is `gelu` (by the error function, as the authors), `gelu_new` or `gelu_pytorch_tanh` (by tanh, as
    Google's latest code), `relu` or `tanh`. `others` holds those of the file's further keys that a copy keeps.
    """
    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    others: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json_file(cls, path, flag="--bert_config_file"):
        """Reads a config file. Raises UserError where it is missing, no JSON, or describes no model."""
        values = read_json(require_file(path, flag), {}, f"{flag}: {path}")
        check_plain(values, f"{flag}: {path}")
        if "vocab_size" not in values:
            raise UserError(f"{flag}: {path} is no BERT configuration: it has no vocab_size")
        fields = {field.name: field.type for field in dataclasses.fields(cls) if field.name != "others"}
        config = cls(**{key: value for key, value in values.items() if key in fields},
                     others={key: values[key] for key in KEPT if key in values})
        config.check(f"{flag}: {path}")
        return config

    def check(self, where):
        """Raises UserError, its text starting with `where`, unless the fields describe a model that can be built."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (type(value) is not int or value < 1):
                raise UserError(f"{where}: {field.name} is {value!r}, a whole number of at least 1 is needed")
            if field.type is float and (type(value) not in (int, float) or not 0 <= value < 1):
                raise UserError(f"{where}: {field.name} is {value!r}, a number from 0 to below 1 is needed")
        if self.hidden_act not in ACTIVATIONS:
            raise UserError(f"{where}: hidden_act is {self.hidden_act!r}, one of {', '.join(ACTIVATIONS)} is needed")
        if self.num_hidden_layers > MAX_LAYERS:
            raise UserError(f"{where}: num_hidden_layers is {self.num_hidden_layers}, at most {MAX_LAYERS:,} are possible")
        if self.num_parameters() > MAX_PARAMETERS:
            raise UserError(f"{where}: these sizes make {self.num_parameters():,} parameters, at most {MAX_PARAMETERS:,} are "
                            "possible (BERT-large has 335 million); look for a digit too many")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"{where}: hidden_size {self.hidden_size} is no multiple of num_attention_heads "
                            f"{self.num_attention_heads}")

    def num_parameters(self):
        """Weights of the encoder, the pooler left out."""
        hidden, inner = self.hidden_size, self.intermediate_size
        layer = 4 * hidden * (hidden + 1) + hidden * (2 * inner + 1) + inner + 4 * hidden
        embeddings = hidden * (self.vocab_size + self.max_position_embeddings + self.type_vocab_size + 2)
        return embeddings + layer * self.num_hidden_layers

    def check_max_seq_length(self, max_seq_length):
        """Raises UserError where sequences of that many tokens have no positions or no room for text."""
        if max_seq_length > self.max_position_embeddings:
            raise UserError(f"--max_seq_length {max_seq_length} is over the model's {self.max_position_embeddings} positions "
                            "(max_position_embeddings)")
        if max_seq_length < 5:
            raise UserError(f"--max_seq_length {max_seq_length} leaves no room for text; use at least 5")

    def identity(self):
        """What tells a run's model from another of the same weights: {"configuration KEY": value}, without `others`."""
        return {f"configuration {key}": value for key, value in vars(self).items() if key != "others"}

    def to_dict(self):
        """All keys and values as they are written to a file."""
        return self.others | {key: value for key, value in vars(self).items() if key != "others"}

    def write(self, path, **more):
        """Writes the configuration as JSON, with the keys `more` added."""
        write_json(path, self.to_dict() | more)


def check_plain(values, where):
    """Raises UserError, its text starting with `where`, where the keys of a configuration say that the model is no BERT, or
    that it computes what is not implemented here."""
    check_schema({"model_type": None, "architectures": None} | values,
                 {"model_type": (str, type(None)), "architectures": (list, type(None))}, where)
    kind = values.get("model_type") or next((SIGNS[key] for key in values if key in SIGNS), None)
    for name in map(str, () if kind else values.get("architectures") or ()):  # a file older than model_type
        name = re.sub("^(TF|Flax)|(Model|LMHead|For[A-Z]).*", "", name).lower()
        kind = kind or name if name in OTHER_MODELS or "bert" not in name else kind
    refuse_other_model(kind, where)
    for key, plain in (PLAIN | {"embedding_size": values.get("hidden_size")}).items():
        if values.get(key, plain) not in (None, plain):
            raise UserError(f"{where}: {key} is {values[key]!r}, which is not implemented; BERT has {plain!r}")
