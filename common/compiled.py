"""Functions compiled to machine code.

Numba compiles a function when it is first called: seconds, once a machine, as the code is kept in __pycache__, or in the user's
cache folder where that cannot be written to.
"""
import os

import numba

from common.files import digest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def cache_folder(root, rooms):
    """Where the code of the compiled functions in these folders of `root` is kept: another place once one of the files has
    changed. (Numba itself looks at the file of a function only, not at those of the functions that it calls.)"""
    texts = []
    for room in rooms:
        for name in sorted(os.listdir(os.path.join(root, room))):
            if name.endswith(".py"):
                with open(os.path.join(root, room, name), encoding="utf-8") as file:
                    texts.append(file.read())
    own = numba.config.CACHE_DIR or (root if os.access(root, os.W_OK) else os.path.expanduser("~/.cache"))
    return os.path.join(own, "__pycache__", "compiled-" + digest(*(text for text in texts if "@compiled" in text)))


numba.config.CACHE_DIR = cache_folder(ROOT, ("finetuning", "pretraining"))


def compiled(function):
    """The function compiled, without Python's global lock while it runs."""
    try:
        return numba.njit(function, cache=True, nogil=True)
    except RuntimeError:  # no folder for the cache can be written to
        return numba.njit(function, nogil=True)
