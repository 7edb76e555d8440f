"""The rules of the house: what lies where, who imports whom (imports inside functions counted), how long a file is."""
import ast
import collections

import pytest

from conftest import ROOT

ROOMS = ("common", "pretraining", "finetuning")
LIBRARIES = {"tokenization", "tasks", "modeling", "optimization"}
FOLDERS = (".", *ROOMS, "data", "scripts", "benchmarks")
PRODUCT = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
FRAMEWORKS = {"torch", "tensorflow"}


def name_of(path):
    """A file's module name, as the scripts import it from the project's root."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PRODUCT}


def imports_of(path):
    """The names of all modules that a file imports, wherever in it: `from a import b` gives a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func) and node.args \
                and isinstance(node.args[0], ast.Constant):
            found.add(node.args[0].value)
    return found


IMPORTS = {name: imports_of(path) for name, path in MODULES.items()}
OWN = {name: (found & MODULES.keys()) - {name, *ROOMS} for name, found in IMPORTS.items()}


def reached_from(name, beyond=()):
    """The module and all of the project's that running it may load; `beyond`: modules behind which nothing counts."""
    seen, waiting = set(), [name]
    while waiting:
        if (current := waiting.pop()) not in seen and current not in beyond:
            seen.add(current)
            waiting += OWN[current]
    return seen


def frameworks_of(name):
    return {module.partition(".")[0] for module in IMPORTS[name]} & FRAMEWORKS


def is_script(name):
    return "." not in name and name not in LIBRARIES


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_a_file_can_be_read_in_one_go(path):
    assert path.read_text(encoding="utf-8").count("\n") <= 450


def test_no_line_is_over_128_characters():
    files = PRODUCT + sorted((ROOT / "tests").glob("*.py")) + sorted(ROOT.glob("[sb]*/*.sh"))
    found = [f"{path.relative_to(ROOT)}:{number}: {len(line)}" for path in files
             for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if len(line) > 128]
    assert not found, "\n".join(found)


def test_the_top_level_is_the_pipeline_and_four_libraries():
    top = {path.stem for path in ROOT.glob("*.py")}
    assert len(top) <= 12
    assert LIBRARIES <= top
    assert all("if __name__ ==" in (ROOT / f"{name}.py").read_text() for name in top - LIBRARIES)


def test_no_import_circle():
    remaining = {name: set(found) for name, found in OWN.items()}
    while leaves := {name for name, found in remaining.items() if not found & remaining.keys()}:
        remaining = {name: found for name, found in remaining.items() if name not in leaves}
    assert not remaining, f"these import each other: {sorted(remaining)}"


def test_a_library_never_imports_a_script():
    found = collections.defaultdict(set)
    for name in MODULES:
        if not is_script(name) and name.partition(".")[0] in (*ROOMS, *LIBRARIES):
            found[name] = {imported for imported in OWN[name] if is_script(imported)}
    assert len(found) > 10 and not any(found.values()), found


def test_no_framework_in_common():
    rooms = [name for name in MODULES if name.startswith("common.")]
    assert rooms and not any(frameworks_of(module) for name in rooms for module in reached_from(name))


def test_no_torch_in_pretraining():
    """Neither itself nor by way of what it imports, and so for the scripts of steps 1 to 3."""
    steps = ["generate_corpus_agnews", "generate_corpus", "create_pretraining_data", "run_pretraining"]
    rooms = [name for name in MODULES if name.startswith("pretraining.")]
    assert len(rooms) > 5
    for name in rooms + steps:
        assert not [module for module in reached_from(name) if "torch" in frameworks_of(module)], name


def test_tensorflow_in_finetuning_only_to_read_a_checkpoint():
    """weights.py may load it, or what loads it; nothing else on the way does."""
    scripts = [name for name in MODULES if name.startswith("run_classifier_")]
    assert len(scripts) == 3 and all("finetuning.weights" in reached_from(name) for name in scripts)
    for name in scripts:
        assert not [module for module in reached_from(name, beyond={"finetuning.weights"})
                    if "tensorflow" in frameworks_of(module)], name


def test_rooms_have_no_folders():
    entries = [path for room in ROOMS for path in (ROOT / room).iterdir()]
    assert entries and not [path for path in entries if path.is_dir() and path.name != "__pycache__"]
