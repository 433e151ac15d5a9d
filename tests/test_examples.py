import difflib
import os
import pathlib
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    "name", ["train_in_batch.py", "train_mined.py", "own_miner.py", "raw_features.py"]
)
def test_example_runs(name):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) > 0.2  # by chance: 0.01


def test_an_existing_model_needs_five_changed_lines_at_most():
    before, after = (
        (EXAMPLES / name).read_text("utf-8").split('"""', 2)[2].splitlines()
        for name in ("train_in_batch.py", "train_mined.py")
    )
    changes = [line for line in difflib.ndiff(before, after) if line.startswith("+ ") and line[2:]]
    assert 0 < len(changes) <= 5
