"""The README says what the code does: its tables of flags, and that the commands it gives parse."""
import importlib
import re
import shlex
import sys

import pytest

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def flags_table():
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "data")]
    return importlib.import_module("flags_table")


def test_tables_of_flags_are_those_of_the_scripts(flags_table):
    stated = README.split("<!-- flags: scripts/flags_table.py -->\n")[1].split("<!-- end of flags -->")[0]
    assert stated.strip() == flags_table.tables().strip()


def test_every_flag_of_every_command_exists(flags_table):
    commands = re.findall(r"^python (?:data/)?(\w+)\.py((?:.*\\\n)*.*)$", README, re.MULTILINE)
    checked = set()
    for script, arguments in commands:
        if script not in flags_table.SCRIPTS:
            continue
        known = {flag for action in flags_table.parser_of(script)._actions for flag in action.option_strings}
        used = {word.partition("=")[0] for word in shlex.split(arguments.replace("\\\n", " ")) if word.startswith("--")}
        assert used <= known, (script, used - known)
        checked.add(script)
    assert checked == set(flags_table.SCRIPTS)
