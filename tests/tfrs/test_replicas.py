"""In-batch negatives of the original stay with their replica; ours are those of the global batch."""

import json
import subprocess
import sys

import numpy as np
import pytest


@pytest.fixture(scope="module")
def replicated():
    command = [sys.executable, "-m", "tests.tfrs.replicated"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("what", ["in_batch", "mined"])
def test_two_replicas_train_as_one_does(replicated, what):
    found = replicated[what]
    one, two = found["logs"]
    for name in ("loss", "mean_loss"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, err_msg=name)
    assert max(found["differences"]) < 1e-4
    assert found["apart"] == []


def test_all_that_a_call_takes_is_of_the_global_batch(replicated):
    """Extra candidates, unknown identifiers, weights, probabilities and masks."""
    two, one = replicated["called"]
    np.testing.assert_allclose(two, one, rtol=1e-5)
