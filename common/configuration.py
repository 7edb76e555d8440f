"""BertConfig, the shape of a BERT model, read by both frameworks (the file `bert_config.json` or `config.json`)."""
import dataclasses

from common.command_line import UserError
from common.files import read_json, require_file, write_json

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "tanh")
# Beyond these a number is a slip, which would take gigabytes: BERT-large has 24 layers and 335 million parameters, MuRIL-large
# 506 million, and DeBERTa-v2-xxlarge, which is no plain BERT, 1.5 billion.
MAX_LAYERS, MAX_PARAMETERS = 1_000, 2_000_000_000


@dataclasses.dataclass
class BertConfig:
    """The fields of google-research/bert's bert_config.json, and layer_norm_eps, with BERT-base's values.

    `hidden_act` is `gelu` (by the error function, as the authors), `gelu_new` or `gelu_pytorch_tanh` (by tanh, as
    Google's latest code), `relu` or `tanh`. `others` holds the file's further keys, so that a copy keeps them.
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
        if "vocab_size" not in values:
            raise UserError(f"{flag}: {path} is no BERT configuration: it has no vocab_size")
        fields = {field.name: field.type for field in dataclasses.fields(cls) if field.name != "others"}
        config = cls(**{key: value for key, value in values.items() if key in fields},
                     others={key: value for key, value in values.items() if key not in fields})
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

    def check_vocab(self, num_tokens, vocab_file):
        """Raises UserError where the vocabulary has another number of tokens than the model has embeddings."""
        if num_tokens != self.vocab_size:
            raise UserError(f"--vocab_file: {vocab_file} has {num_tokens} tokens, the model's vocab_size is "
                            f"{self.vocab_size}; take the vocabulary that came with the checkpoint")

    def identity(self):
        """What tells a run's model from another of the same weights: {"configuration KEY": value}, without `others`."""
        return {f"configuration {key}": value for key, value in vars(self).items() if key != "others"}

    def to_dict(self):
        """All keys and values as they are written to a file."""
        return self.others | {key: value for key, value in vars(self).items() if key != "others"}

    def write(self, path, **more):
        """Writes the configuration as JSON, with the keys `more` added."""
        write_json(path, self.to_dict() | more)
