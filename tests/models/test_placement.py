"""Devices: two that one processor is divided into stand for any others."""

import json
import subprocess
import sys

import pytest
import tensorflow as tf

from tests.models.placed import named_devices


@pytest.fixture(scope="module")
def placed():
    command = [sys.executable, "-m", "tests.models.placed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_everything_is_where_the_model_was_made(placed):
    """Weights, index, counts, random state, and what the index answers."""
    second = "/job:localhost/replica:0/task:0/device:CPU:1"
    assert placed["variables"] == [second]
    assert placed["found"] == second


def test_model_trains_there(placed):
    assert placed["losses"][-1] < 0.5 * placed["losses"][0]


def test_no_operation_is_pinned_to_a_device(placed):
    assert placed["pinned"] == []


def test_operation_that_is_pinned_would_be_found():
    @tf.function
    def pinned(x):
        def inner(x):
            with tf.device("CPU:0"):
                return x + 1.0

        return tf.while_loop(lambda x: x < 3.0, inner, [x])

    assert [name.split("/")[-1] for name in named_devices(pinned.get_concrete_function(1.0))] == [
        "device:CPU:0"
    ]
