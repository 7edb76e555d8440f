"""Disables each flag of the fine-tuning scripts and of the converter in turn, and runs the test that observes it.

    python tests/mutate_flags.py            # a line for each flag: its test failed, as it must, or not
    python tests/mutate_flags.py bf16 seed  # these flags alone

A disabled flag has its default value whatever the command says. Exit status 1 if a test passed without its flag, or
fails with it. Each test runs in a fork of a process that has imported TensorFlow, which takes longest.
"""
import argparse
import contextlib
import io
import os
import sys
import tempfile
import time

TESTS = os.path.dirname(os.path.abspath(__file__))
# Also of the processes that a test starts: Python runs a module of this name as it starts.
SITECUSTOMIZE = f"import sys\nsys.path.append({TESTS!r})\nimport mutate_flags\nmutate_flags.disable_flags()\n"


def disable_flags():
    """From now on, what DISABLED_FLAG names has no effect in this process."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse_without(parser, args=None, namespace=None):
        name = os.environ.get("DISABLED_FLAG")
        given = vars(namespace).copy() if namespace else {}
        parsed = parse_args(parser, args, namespace)
        action = next((action for action in parser._actions if action.dest == name), None)
        if action and type(parser).__module__ == "common.command_line":
            default = action.type(action.default) if isinstance(action.default, str) and action.type else action.default
            setattr(parsed, name, given.get(name, default))
        return parsed
    argparse.ArgumentParser.parse_args = parse_without


def passes(test, flag=""):
    """Whether a test, FILE::NAME, passes, in a fork, with a flag disabled."""
    child = os.fork()
    if child == 0:
        os.environ["DISABLED_FLAG"] = flag
        import pytest
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", os.path.join(TESTS, test)]))
        if status not in (0, 1):
            print(output.getvalue())
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1), f"{test} could not be run"
    return status == 0


def main():
    sys.path[:0] = [os.path.dirname(TESTS), TESTS]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from common.command_line import tensorflow_start_up
    with tensorflow_start_up():
        import tensorflow  # noqa: F401
    import test_flags
    found = {(flag, f"{file}::{test}") for (_, flag), (file, test) in test_flags.observers().items()}
    chosen = sorted((test, flag) for flag, test in found if not sys.argv[1:] or flag in sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "sitecustomize.py"), "w") as file:
            file.write(SITECUSTOMIZE)
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        disable_flags()
        wrong = [test for test in sorted({test for test, _ in chosen}) if not passes(test)]
        for test in wrong:
            print(f"{test} FAILS with all flags", flush=True)
        for test, flag in chosen:
            begun = time.monotonic()
            unnoticed = passes(test, flag)
            wrong += [flag] * unnoticed
            print(f"--{flag}: {test} {'PASSES WITHOUT IT' if unnoticed else 'fails without it'} "
                  f"({time.monotonic() - begun:.0f} s)", flush=True)
    print(f"{len(chosen)} flags, {len(wrong)} faults")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
