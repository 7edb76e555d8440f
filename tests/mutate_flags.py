"""Disables each flag in turn, and each of a few switches inside the libraries, and expects that a test fails.

    python tests/mutate_flags.py                                # all of them: hours, for a night or a weekend
    python tests/mutate_flags.py run_pretraining                # a script's flags
    python tests/mutate_flags.py run_pretraining.precision      # one
    python tests/mutate_flags.py "dropout of processes"         # a switch

A disabled flag has its default value whatever the command says, also in the processes that a test starts. The tests are
the one that a table OBSERVED names for the flag (tests/test_flags.py and others), else the files that mention the
script, without the long tests. Prints what became of each, and ends with status 1 if one survived: if its tests passed
without it. A test that fails with everything in place does not count.
"""
import argparse
import ast
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
VARIABLE = "DISABLED_FLAG"  # SCRIPT[,SCRIPT...].FLAG
# Scripts whose common flags are made in one place: they are disabled in all of them at once.
FINE_TUNING = ("run_classifier_single_layer", "run_classifier_discriminative", "run_classifier_multitask")
OTHERS = ("test_faults", "test_house", "test_preloaded", "test_readme", "test_setup")
SWITCHES = {  # name -> (file, text in it, what takes its place, test)
    "dropout of processes": ("finetuning/training.py", "recipe.seed + world.rank", "recipe.seed",
                             "test_flags.py::test_processes_draw_dropout_of_their_own"),
    "dropout of replicas": ("pretraining/training.py", "context.replica_id_in_sync_group * accumulation + i", "i",
                            "test_run_pretraining.py::test_replicas_and_micro_batches_draw_dropout_of_their_own"),
    "dropout of micro-batches": ("pretraining/training.py", "context.replica_id_in_sync_group * accumulation + i",
                                 "context.replica_id_in_sync_group",
                                 "test_run_pretraining.py::test_replicas_and_micro_batches_draw_dropout_of_their_own"),
}
SITECUSTOMIZE = f"import sys\nsys.path.append({str(ROOT / 'tests')!r})\nimport mutate_flags\nmutate_flags.disable()\n"


def docstring(script):
    return ast.get_docstring(ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8")), clean=False)


def disable():
    """From now on, the flag that the environment variable names, if it is set, has no effect in this process."""
    scripts, _, flag = os.environ.get(VARIABLE, "").rpartition(".")
    if not flag:
        return
    manuals = [docstring(script) for script in scripts.split(",")]
    parse_known_args = argparse.ArgumentParser.parse_known_args

    def parse_without(parser, args=None, namespace=None):
        parsed, rest = parse_known_args(parser, args, namespace)
        if parser.description in manuals:
            action = next(action for action in parser._actions if action.dest == flag)
            text = isinstance(action.default, str) and action.type
            setattr(parsed, flag, action.type(action.default) if text else action.default)
        return parsed, rest
    argparse.ArgumentParser.parse_known_args = parse_without


def in_a_fork(function):
    """The words that function() returns in a fork of this process, which imports libraries and nothing else."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()  # a test may send signals to its group
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        with open(writing, "w", encoding="utf-8") as pipe:
            pipe.write(function())
        os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        words = pipe.read()
    assert os.waitpid(child, 0)[1] == 0, "a fork came to grief"
    return words


class FirstFailure:
    """A plugin of pytest: the test that failed."""
    name = ""

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.name = self.name or report.nodeid


def first_failure(tests, mutation=""):
    """Runs tests. Returns the first that fails, "" if none does."""
    def run():
        import conftest
        import pytest

        os.chdir(os.environ[conftest.SESSION])  # a command without --output_dir may write where it is
        os.environ[VARIABLE] = mutation
        disable()
        plugin, quick = FirstFailure(), [] if "::" in tests[0] else ["-m", "not long"]
        status = pytest.main(["-x", "-p", "no:cacheprovider", "--timeout", "300", *quick, *tests], [plugin])
        nothing = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)  # all were left out
        return plugin.name or ("" if status in nothing else f"pytest ended with {status}")
    return in_a_fork(run)


def killer(tests, mutation):
    """The test that fails for the mutation alone, None if there is none."""
    left_out = []
    while name := first_failure([*tests, *left_out], mutation):
        if "::" not in name or not first_failure([str(ROOT / "tests" / name)]):
            return name
        left_out += ["--deselect", name]
    return None


def read_flags():
    """[[scripts that have a flag, the flag, its tests], ...] for every flag that can be left out.

    The tests are the one that a table OBSERVED names, else those in the files that mention the script, most often
    first, but for files that run it for other reasons.
    """
    import flags_table
    import test_create_pretraining_data
    import test_flags
    import test_generate_corpus
    import test_run_pretraining

    named = {key: f"{file}::{test}" for key, (file, test) in test_flags.observers().items()}
    for module in (test_create_pretraining_data, test_generate_corpus, test_run_pretraining):
        script = module.__name__.removeprefix("test_")
        named |= {key if isinstance(key, tuple) else (script, key): f"{module.__name__}.py::{test}"
                  for key, test in module.OBSERVED.items()}
    scripts = [script.removesuffix(".py") for script in flags_table.SCRIPTS]
    flags = {script: [action.dest for action in flags_table.parser_of(script)._actions
                      if action.dest != "help" and not action.required] for script in scripts}
    found = {}
    for script in scripts:
        for flag in flags[script]:
            same = [other for other in FINE_TUNING if flag in flags[other]] if script in FINE_TUNING else [script]
            mentions = {path: path.read_text(encoding="utf-8").count(script.rpartition("/")[2])
                        for path in (ROOT / "tests").glob("test_*.py") if path.stem not in OTHERS}
            files = [path.name for path in sorted(mentions, key=mentions.get, reverse=True) if mentions[path]]
            tests = [named[script, flag]] if (script, flag) in named else files
            found.setdefault((tuple(same), flag), [str(ROOT / "tests" / test) for test in tests])
    return json.dumps([[*key, tests] for key, tests in found.items()])


def failing_in_a_copy(file, old, new, test):
    """What pytest says of the failure in a copy of the project with a text in a file replaced, None if the test passes."""
    import conftest

    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, "main")
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).exists():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
        if (ROOT.parent / "shared").exists():
            os.symlink(ROOT.parent / "shared", copy.parent / "shared")
        text = (copy / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file} has {old!r} {text.count(old)} times: SWITCHES is to be brought up to date"
        (copy / file).write_text(text.replace(old, new), encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if name != conftest.SESSION}
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", copy / "tests" / test], cwd=copy, text=True,
                              capture_output=True, env=environment)
        assert done.returncode in (0, 1), done.stdout
        return next((line for line in done.stdout.splitlines() if line.startswith("FAILED")), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="SCRIPT[.FLAG] or switch")
    wanted = parser.parse_args().names
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]
    from common.command_line import tensorflow_start_up
    with tensorflow_start_up():
        import tensorflow  # noqa: F401
    import torch  # noqa: F401
    import conftest
    import preloaded
    mutations = [(scripts, flag, tests) for scripts, flag, tests in json.loads(in_a_fork(read_flags))
                 if not wanted or {*scripts, *(f"{script}.{flag}" for script in scripts)} & set(wanted)]
    switches = {name: switch for name, switch in SWITCHES.items() if not wanted or name in wanted}
    if not mutations and not switches:
        parser.error(f"there is no {' or '.join(wanted)}")
    survivors = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        os.environ[conftest.SESSION] = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(preloaded.open_session(os.environ[conftest.SESSION]))  # one for all sessions of pytest
        pathlib.Path(folder, "sitecustomize.py").write_text(SITECUSTOMIZE)
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        for scripts, flag, tests in mutations:
            report(f"{scripts[0]}.{flag}", lambda: killer(tests, f"{','.join(scripts)}.{flag}"), survivors)
    for name, (file, old, new, test) in switches.items():
        report(name, lambda: failing_in_a_copy(file, old, new, test), survivors)
    print(f"{len(mutations) + len(switches)} disabled, {len(survivors)} survived", *survivors, sep="\n  ")
    sys.exit(bool(survivors))


def report(name, find, survivors):
    begun = time.monotonic()
    found = find()
    survivors += [] if found else [name]
    print(f"{name}: {found or 'SURVIVES'} ({time.monotonic() - begun:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
