"""Two replicas train as one does on the same global batch. In a process that has two devices."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tf_dynidx.keras_world import IS_KERAS_3

# What `fit` has to do with it differs between the worlds; the rest is looked at in one of them.
IN_BOTH, IN_KERAS_3 = ["in_batch", "mined"], ["own_negatives", "tree", "others", "refused"]
ASKED = IN_BOTH + IN_KERAS_3 * IS_KERAS_3


@pytest.fixture(scope="module")
def replicated():
    """What `tests.models.replicated` found: dict by what was asked for."""
    command = [sys.executable, "-m", "tests.models.replicated", *ASKED]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def only(*asked):
    """The tests of what was asked for in this world."""
    return pytest.mark.parametrize("what", [each for each in asked if each in ASKED])


@only("in_batch", "mined", "own_negatives")
def test_two_replicas_train_as_one_does(replicated, what):
    """Losses, weights, optimizer, counts and the miner's table: nothing stays with its replica."""
    found = replicated[what]
    one, two = found["logs"]
    assert one.keys() == two.keys()
    for name, values in one.items():
        np.testing.assert_allclose(two[name], values, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(found["evaluated"][1], found["evaluated"][0], rtol=1e-4)
    assert max(found["differences"]) < 1e-4


@only("in_batch", "mined", "own_negatives", "tree", "others")
def test_state_is_the_same_on_all_replicas(replicated, what):
    assert replicated[what]["apart"] == []


@only("tree")
def test_tree_trains(replicated, what):
    logs = replicated[what]["logs"]
    assert logs["loss"][-1] < 0.7 * logs["loss"][0]
    assert logs["staleness"][-1] < 0.3  # not that of two replicas, added up


@only("tree")
def test_each_replica_draws_from_the_softmax_for_itself(replicated, what):
    """Replicas that drew alike would have half the draws."""
    tree = replicated[what]
    assert tree["distance"] < 1.5 * tree["noise"]
    assert tree["alike"] < 0.5


@only("tree")
def test_state_goes_through_files_to_one_replica_and_back_to_all(replicated, what):
    tree = replicated[what]
    assert tree["kept"]
    assert tree["weights"]
    assert tree["checkpoint"]
    assert tree["apart after loading"] == []


@only("others")
def test_loop_of_ones_own_prepares_the_miner_in_its_first_step(replicated, what):
    others = replicated[what]
    assert np.mean(others["losses"][-4:-1]) < 0.7 * np.mean(others["losses"][:3])
    assert others["counted"] == [363.0, 12]


@only("refused")
def test_refusals(replicated, what):
    messages = {
        "compiled": "XLA compiles a step for one device",
        "outside": "Make models, miners and tasks in the strategy's scope",
        "chunks": "leave encode_chunk out",
    }
    assert replicated[what].keys() == messages.keys()
    for name, message in messages.items():
        assert message in replicated[what][name]
        assert "Received: " in replicated[what][name]
