"""Two replicas train as one does on the same global batch. In a process that has two devices."""

import json
import subprocess
import sys

import numpy as np
import pytest


@pytest.fixture(scope="module")
def replicated():
    """What `tests.models.replicated` found: dict by what was asked for."""
    asked = ("in_batch", "mined", "own_negatives", "tree", "others", "refused")
    command = [sys.executable, "-m", "tests.models.replicated", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("what", ["in_batch", "mined", "own_negatives"])
def test_two_replicas_train_as_one_does(replicated, what):
    """Losses, weights, optimizer, counts and the miner's table: nothing stays with its replica."""
    found = replicated[what]
    one, two = found["logs"]
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(found["evaluated"][1], found["evaluated"][0], rtol=1e-4)
    assert max(found["differences"]) < 1e-4


@pytest.mark.parametrize("what", ["in_batch", "mined", "own_negatives", "tree", "others"])
def test_state_is_the_same_on_all_replicas(replicated, what):
    assert replicated[what]["apart"] == []


def test_tree_trains(replicated):
    logs = replicated["tree"]["logs"]
    assert logs["loss"][-1] < 0.7 * logs["loss"][0]
    assert logs["staleness"][-1] < 0.3  # not that of two replicas, added up


def test_each_replica_draws_from_the_softmax_for_itself(replicated):
    """Replicas that drew alike would have half the draws."""
    tree = replicated["tree"]
    assert tree["distance"] < 1.5 * tree["noise"]
    assert tree["alike"] < 0.5


def test_state_goes_through_files_to_one_replica_and_back_to_all(replicated):
    tree = replicated["tree"]
    assert tree["kept"]
    assert tree["weights"]
    assert tree["checkpoint"]
    assert tree["apart after loading"] == []


def test_loop_of_ones_own_prepares_the_miner_in_its_first_step(replicated):
    others = replicated["others"]
    assert np.mean(others["losses"][-4:-1]) < 0.7 * np.mean(others["losses"][:3])
    assert others["counted"] == [363.0, 12]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("compiled", "XLA compiles a step for one device"),
        ("outside", "Make models, miners and tasks in the strategy's scope"),
        ("chunks", "leave encode_chunk out"),
    ],
)
def test_refusals(replicated, what, message):
    assert message in replicated["refused"][what]
    assert "Received: " in replicated["refused"][what]
