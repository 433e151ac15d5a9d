import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_dynidx.ops.parts import in_blocks, in_parts

OUTPUTS = [(tf.int32, []), (tf.float32, [2])]


def named(owner, place, part):
    """Says of each entry which it is."""
    del part
    entry = 100 * owner + place
    return entry, tf.cast(entry[:, None], tf.float32) * [1.0, 0.5]


def assert_each_entry_is_its_own(made, lengths):
    for values, factor in ((made[0].numpy()[:, :, None], [1.0]), (made[1].numpy(), [1.0, 0.5])):
        for owner, length in enumerate(lengths):
            expected = (100 * owner + np.arange(length))[:, None] * np.array(factor)
            np.testing.assert_array_equal(values[owner, :length], expected)


@settings(deadline=None)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12), size=st.integers(1, 150))
def test_every_entry_of_every_list_is_worked_on(lengths, size):
    made = in_parts(tf.constant(lengths), 9, size, named, OUTPUTS)
    assert made[0].shape == (len(lengths), 9) and made[1].shape == (len(lengths), 9, 2)
    assert_each_entry_is_its_own(made, lengths)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("size", [4, 1000])
def test_parts_are_the_same_in_a_graph_whose_batch_is_free(size, jit_compile):
    @tf.function(
        jit_compile=jit_compile, autograph=False, input_signature=[tf.TensorSpec([None], tf.int32)]
    )
    def run(lengths):
        return in_parts(lengths, 9, size, named, OUTPUTS)

    for lengths in ([3, 0, 9, 1, 0], [0, 0], [5], []):
        assert_each_entry_is_its_own(run(tf.constant(lengths, tf.int32)), lengths)


def test_no_more_is_worked_on_than_there_is():
    parts = []

    def counted(owner, place, part):
        parts.append(int(part))
        return named(owner, place, part)

    in_parts(tf.constant([7, 0, 3, 9]), 10, 4, counted, OUTPUTS)
    assert parts == [0, 1, 2, 3, 4]  # 19 entries of 40 that there is room for


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("number", [1, 5, 6, 7])
@pytest.mark.parametrize("free", [False, True])
def test_blocks_are_joined_in_order(free, number, jit_compile):
    def work(x, y):
        assert x.shape[0] is None or x.shape[0] <= 3
        return tf.reduce_sum(x, axis=1) + y, x

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=[number, 4]).astype(np.float32), np.arange(number, dtype=np.float32)
    length = None if free else number
    run = tf.function(
        lambda x, y: in_blocks([x, y], 3, work, [(tf.float32, []), (tf.float32, [4])]),
        jit_compile=jit_compile,
        autograph=False,
        input_signature=[tf.TensorSpec([length, 4]), tf.TensorSpec([length])],
    )
    sums, same = run(x, y)
    np.testing.assert_allclose(sums, x.sum(axis=1) + y, rtol=1e-5)
    np.testing.assert_array_equal(same, x)


def test_no_entries_make_no_blocks():
    run = tf.function(
        lambda x: in_blocks([x], 3, lambda x: (2.0 * x,), [(tf.float32, [4])]),
        autograph=False,
        input_signature=[tf.TensorSpec([None, 4])],
    )
    assert run(tf.zeros([0, 4]))[0].shape == (0, 4)
