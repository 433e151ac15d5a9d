"""int32 state in variables of int64: read and written as a variable of int32 would be."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dynidx.index import DynamicIndex
from tf_dynidx.index.integers import Integers

_LARGEST = 2**31 - 1


@pytest.fixture(name="state")
def _state():
    return Integers([3, -1, _LARGEST, 7], "state")


@pytest.mark.parametrize("jit_compile", [False, True])
def test_reads_are_int32(state, jit_compile):
    @tf.function(jit_compile=jit_compile)
    def reads():
        gathered = tf.gather(state, [[2, 0]])
        return (
            gathered,
            tf.reshape(state, [2, 2]),
            tf.maximum(state, 0),
            state[1:3],
            state - 1,
            state % 2,
        )

    expected = np.array([3, -1, _LARGEST, 7], np.int32)
    gathered, reshaped, positive, part, less, odd = reads()
    np.testing.assert_array_equal(gathered, expected[[[2, 0]]])
    np.testing.assert_array_equal(reshaped, expected.reshape(2, 2))
    np.testing.assert_array_equal(positive, np.maximum(expected, 0))
    np.testing.assert_array_equal(part, expected[1:3])
    np.testing.assert_array_equal(less, expected - 1)
    np.testing.assert_array_equal(odd, expected % 2)
    assert {each.dtype for each in (gathered, reshaped, positive, part, less, odd)} == {tf.int32}
    np.testing.assert_array_equal(state.numpy(), expected)
    assert state.numpy().dtype == np.int32


@pytest.mark.parametrize("jit_compile", [False, True])
def test_writes(state, jit_compile):
    @tf.function(jit_compile=jit_compile)
    def write():
        state.scatter_nd_update([[0]], [_LARGEST])
        state.scatter_update(tf.IndexedSlices([5], [1]))
        state.scatter_add(tf.IndexedSlices([2, 2], [3, 3]))

    write()
    np.testing.assert_array_equal(state.numpy(), [_LARGEST, 5, _LARGEST, 11])
    state.assign(tf.range(4))
    np.testing.assert_array_equal(state.numpy(), [0, 1, 2, 3])
    count = Integers(1, "count")
    total = count.assign_add(4)
    assert total.dtype == tf.int32
    assert int(total) == int(count) == 5


def test_is_no_tensor_of_another_dtype(state):
    with pytest.raises((ValueError, TypeError), match="float32"):
        tf.convert_to_tensor(state, tf.float32)


@pytest.mark.parametrize("form", ["full", "lazy"])
def test_index_has_no_variable_of_int32(form):
    """XLA on a GPU refuses a step that uses one: it is in the memory of the host."""
    index = DynamicIndex(4, 100, form=form)
    assert [variable.name for variable in index.variables if variable.dtype == tf.int32] == []
