"""The README's first command, as a newcomer types it, in an environment that is already set up."""
import os
import re
import subprocess

import pytest

from conftest import ROOT


@pytest.mark.long
def test_quickstart_runs_the_pipeline_twice_and_shows_accuracies(tmp_path, interpreter):
    environment = {**os.environ, "VENV": str(interpreter.parent.parent), "OUT": str(tmp_path / "out"), "SEEDS": "1"}
    first, second = (subprocess.run(["bash", str(ROOT / "scripts/quickstart.sh")], capture_output=True, text=True,
                                    env=environment, timeout=300) for _ in range(2))
    assert first.returncode == 0, first.stdout + first.stderr
    assert second.returncode == 0, second.stdout + second.stderr
    rows = re.findall(r"^tiny BERT.*?(\d+\.\d+)%", first.stdout, re.MULTILINE)
    assert len(rows) == 2 and all(60 < float(accuracy) < 98 for accuracy in rows), first.stdout
    # finished steps are not run again, and the figures stay
    assert re.findall(r"^tiny BERT.*", second.stdout, re.MULTILINE) == re.findall(r"^tiny BERT.*", first.stdout, re.MULTILINE)
    predicted = re.findall(r"^([1-4])\t0\.\d+\t.*", first.stdout, re.MULTILINE)
    assert len(predicted) == 4
