"""Beside Keras Recommenders (keras-rs): its retrieval layer, and the example after its own."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.reference import clustered
from tf_dynidx.layers import TreeTopK

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "keras_rs_retrieval.py"
SIZE, DIM = 300, 8

rng = np.random.default_rng(0)
CANDIDATES, QUERIES = clustered(rng, SIZE, DIM), clustered(rng, 9, DIM)


def run(before=""):
    """What the example prints, as a program of its own."""
    code = f"import runpy, sys\n{before}\nrunpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(EXAMPLE.parent), *sys.path])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_example_runs_without_keras_rs():
    # None in sys.modules is Python's way to say that a module cannot be imported.
    printed = run("sys.modules['keras_rs'] = None")
    recalls = re.search(r"^val_recall@100 (.*)$", printed, re.MULTILINE).group(1).split()
    assert len(recalls) == 3 and float(recalls[-1]) > 0.3  # by chance: 0.1
    assert len(re.findall(r"^-?\d\.\d+  Movie \d+$", printed, re.MULTILINE)) == 10
    assert "shared with brute force" not in printed


def test_example_compares_with_keras_rs():
    pytest.importorskip("keras_rs")
    assert float(run().split("shared with brute force")[1]) > 0.95


@pytest.mark.parametrize("with_ids", [True, False])
def test_answer_is_that_of_the_brute_force_layer(with_ids):
    keras_rs = pytest.importorskip("keras_rs")
    ids = (1000 + 3 * np.arange(SIZE)).astype(np.int32) if with_ids else None
    theirs = keras_rs.layers.BruteForceRetrieval(CANDIDATES, ids, k=7)
    ours = TreeTopK(k=7, budget=SIZE).index(CANDIDATES, ids)
    (expected_scores, expected), (scores, found) = theirs(QUERIES), ours(QUERIES)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)
    np.testing.assert_array_equal(found, expected)
