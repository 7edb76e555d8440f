"""Names on the Hub of Hugging Face in place of a folder: `bert-base-uncased`, `google-bert/bert-base-cased@main`.

    python -m common.hub NAME    prints the local folder of that model, for a shell script
"""
import os
import re
import sys

from common.command_line import UserError, run
from common.configuration import CONFIG_NAMES
from common.names import WEIGHT_FILES
from common.vocabulary import VOCAB_NAMES

NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
FILE = re.compile(r".*\.(bin|safetensors|txt|json|pt|pth|h5|ckpt|index|meta)|.*ckpt-\d+")  # no name, but a slip in a path


def find_on_hub(path, flag, weights=WEIGHT_FILES):
    """(the local folder, "NAME@COMMIT") of the model that `path`, the value of `flag`, names on the Hub; (`path`, None) where
    it is no such name, or something is there by it.

    The files come through huggingface_hub: into its cache, by its variables (HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE),
    the configuration and the vocabulary with the first of `weights` that the model has. Raises UserError where there is no such
    model, or it is not in the cache and the Hub cannot be reached.
    """
    name = NAME.fullmatch(path or "")
    # no name either: a file or folder that is there, a checkpoint's prefix, what is missing in a folder that is there
    if not name or FILE.fullmatch(path) or any(map(os.path.exists, (path, f"{path}.index", os.path.dirname(path) or "/none"))):
        return path, None
    import huggingface_hub  # two thirds of a second, which only a name waits for

    files = [*CONFIG_NAMES, *VOCAB_NAMES, "tokenizer_config.json"]
    try:
        for file in weights or [None]:
            folder = huggingface_hub.snapshot_download(name["name"], revision=name["revision"],
                                                       allow_patterns=files + [file] * bool(file))
            if file is None or os.path.isfile(os.path.join(folder, file)):
                return folder, f"{name['name']}@{os.path.basename(folder)}"
    except Exception as error:  # of the network, the server or the name, by several libraries
        if getattr(error, "errno", None):  # the disk's
            raise
        raise UserError(f"{flag}: there is no file or folder {path}, and no model of that name came from the Hub "
                        f"({type(error).__name__}: {str(error).strip().splitlines()[0]}); give a folder, or a name of "
                        "https://huggingface.co/models where there is a network") from None
    raise UserError(f"{flag}: {name['name']} on the Hub has neither {' nor '.join(weights)}")


if __name__ == "__main__":
    run(lambda: print(find_on_hub(sys.argv[1], "BERT")[0]))
