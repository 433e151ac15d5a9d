"""Devices: two that one processor is divided into stand for any others.

The model is made on the second. The host's memory is that of the first, as it is beside an accelerator.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.models import small
from tests.models.placed import named_devices
from tf_dynidx import TargetCorpus
from tf_dynidx.index import DynamicIndex
from tf_dynidx.keras_world import IS_KERAS_3
from tf_dynidx.miners import InBatch, Tree

_FIRST, _SECOND = (f"/job:localhost/replica:0/task:0/device:CPU:{place}" for place in (0, 1))


def _placed(placement):
    command = [sys.executable, "-m", "tests.models.placed", placement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def on_device():
    return _placed("device")


@pytest.fixture(scope="module")
def on_host():
    return _placed("host")


def test_everything_is_where_the_model_was_made(on_device):
    """Weights, index, counts, features, random state, and what the index answers."""
    assert on_device["kept"] == on_device["weights"] == [_SECOND]
    assert on_device["found"] == _SECOND


def test_model_trains_there(on_device):
    assert on_device["losses"][-1] < 0.5 * on_device["losses"][0]


def test_no_operation_is_pinned_to_a_device(on_device):
    assert on_device["pinned"] == []


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


def test_what_grows_with_the_corpus_is_kept_on_the_host(on_host):
    """Index, counts and features there; weights and the work on them where the model was made."""
    assert on_host["kept"] == [_FIRST]
    assert on_host["weights"] == [_SECOND]
    assert [name.split("/")[-1] for name in on_host["pinned"]] == ["device:CPU:0"]


def test_nothing_as_long_as_the_corpus_leaves_the_host(on_host, on_device):
    """The landmarks of so small a corpus are many; the table has slots for twice the targets."""
    landmarks = 8 * (small.DIM + 1)
    assert landmarks <= on_host["longest_elsewhere"] < small.TARGETS <= on_device["longest_elsewhere"]


def test_training_is_the_same_from_the_host(on_host, on_device):
    np.testing.assert_allclose(on_host["losses"], on_device["losses"], rtol=1e-5)


def test_no_state_is_of_int32():
    """TensorFlow keeps that on the host, beside a GPU too, where a step that XLA compiles has none."""
    model = small.make(Tree())
    model.prepare_miner()
    state = model._own_state()
    assert [name for name, variable in state.items() if variable.dtype == tf.int32] == []


def test_nothing_is_compiled_by_xla_with_the_host():
    """Keras 3 leaves it out by itself, as "auto" or with a warning; Keras 2 would not."""
    host = {"placement": "host"}
    if IS_KERAS_3:
        assert not small.make(corpus=host, jit_compile="auto").jit_compile
        with pytest.warns(UserWarning, match="doesn't support `jit_compile=True`"):
            assert not small.make(corpus=host, jit_compile=True).jit_compile
    else:
        with pytest.raises(ValueError, match=r"one device.*jit_compile=False.*placement='host'"):
            small.make(corpus=host, jit_compile=True).fit(small.batches(), verbose=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DynamicIndex(small.DIM, small.TARGETS, placement="host"),
        lambda: small.make(InBatch(), corpus={"placement": "host"}),
    ],
)
def test_strategy_is_refused_with_the_host(make):
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope(), pytest.raises(ValueError, match=r"places variables itself.*OneDevice"):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: DynamicIndex(small.DIM, small.TARGETS, placement="GPU"),
        lambda: TargetCorpus(small.TARGET_FEATURES, placement="GPU"),
    ],
)
def test_unknown_placement_is_refused(make):
    with pytest.raises(ValueError, match="placement must be one of device, host. Received: .*GPU"):
        make()


def test_saved_model_is_kept_where_it_was(tmp_path):
    model = small.make(Tree(), corpus={"placement": "host"})
    model.fit(small.batches(), verbose=0)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = small.keras.models.load_model(path)
    assert loaded.corpus.placement == loaded.miner.index.placement == "host"
    small.assert_same_state(small.state(model), small.state(loaded))
