"""Names of weights: TensorFlow's and PyTorch's of one BERT, those of other models, those of an optimizer."""
import re

from common.configuration import OTHER_MODELS, SIGNS, refuse_other_model

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # under which transformers finds weights in a folder
POOLER = ("bert/pooler/", "bert.pooler.")  # which BertForMaskedLM is saved without; in TensorFlow, in PyTorch
TIED = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias"}  # two names of one tensor, in PyTorch alone
# the last two: counters that old `transformers` files hold
DUPLICATES = (*TIED, "bert.embeddings.position_ids", "bert.embeddings.token_type_ids")
TRAINING_STATE = ("global_step", "beta1_power", "beta2_power", "loss_scale", "good_steps", "bad_steps", "current_loss_scale")


def check_names_of_weights(names, where):
    """Raises UserError, its text starting with `where`, where names of weights (PyTorch's or TensorFlow's) are no BERT's."""
    for first, *rest in (re.split("[./]", name) for name in names):
        signs = [SIGNS[part] for part in (first, *rest) if part in SIGNS]
        refuse_other_model(first if first in OTHER_MODELS else signs and signs[0], where)


def is_training_state(name, names):
    """Whether a variable of a TensorFlow checkpoint is the optimizer's: a counter, or a name below another variable's, such as
    X/adam_m, X/BERTAdam_1 or X/LAMB below X. names: those of the checkpoint and of the model."""
    return name in TRAINING_STATE or any(name[:slash.start()] in names for slash in re.finditer("/", name))


def without_pooler(names):
    """Whether a checkpoint with these names has neither a pooler nor the next sentence head, which reads it."""
    return not any(name.startswith((*POOLER, "cls/seq_relationship/", "cls.seq_relationship.")) for name in names)


def with_our_names(state):
    """Renames: DataParallel's `module.`, TensorFlow's gamma and beta, an encoder without `bert.` before it. A masked LM's bias
    that is there as its decoder's alone gets its own name, too."""
    renamed = {}
    for name, value in state.items():
        name = str(name).removeprefix("module.")
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if name.startswith(("embeddings.", "encoder.", "pooler.")):
            name = "bert." + name
        renamed[name] = value
    if "cls.predictions.decoder.bias" in renamed:
        renamed.setdefault("cls.predictions.bias", renamed["cls.predictions.decoder.bias"])
    return renamed


def pytorch_name(name):
    """(name in PyTorch, whether the matrix is transposed) of google-research/bert's variable `name`."""
    *path, last = name.replace("/layer_", "/layer/").split("/")
    path = ".".join(path)
    if name.startswith("bert/embeddings/") and last.endswith("_embeddings"):
        return f"{path}.{last}.weight", False
    renamed = {"gamma": "weight", "beta": "bias", "kernel": "weight", "bias": "bias",
               "output_weights": "weight", "output_bias": "bias"}
    return f"{path}.{renamed[last]}", last == "kernel"
