import numpy as np
import pytest
import tensorflow as tf

from tests.reference import whole_copies
from tf_dynidx.ops.in_place import do_if, ids_after

SIZE = 5000


def test_ids_are_as_they_were():
    ids = tf.constant([3, -1, 0, 7], tf.int32)
    for read in (np.ones([2, 3]), np.array([1.0, np.nan]), np.array([], np.float32)):
        np.testing.assert_array_equal(ids_after(tf.constant(read, tf.float32), ids=ids), ids)
    np.testing.assert_array_equal(ids_after(tf.constant([2, 3]), tf.constant([1.0]), ids=ids), ids)


def test_compiled_write_after_a_read_copies_nothing():
    table = tf.Variable(tf.zeros([SIZE, 4]))
    ids, rows = tf.constant([5, 3], tf.int32), tf.ones([2, 4])

    def read_and_write(ids, rows):
        before = tf.gather(table, ids)
        table.scatter_update(tf.IndexedSlices(rows, ids_after(before, ids=ids)))
        return tf.reduce_sum(before)

    assert whole_copies([[SIZE, 4]], read_and_write, ids, rows) == 0

    def unordered(ids, rows):
        before = tf.gather(table, ids)
        table.scatter_update(tf.IndexedSlices(rows, ids))
        return tf.reduce_sum(before)

    # What the above is for. Should this fail one day, XLA has learned to do without.
    assert whole_copies([[SIZE, 4]], unordered, ids, rows) > 0


@pytest.mark.parametrize("jit_compile", [False, True])
def test_change_is_made_if_its_condition_holds(jit_compile):
    table = tf.Variable(tf.zeros([SIZE, 4]))

    @tf.function(jit_compile=jit_compile, autograph=False)
    def step(condition, row):
        do_if(condition, lambda: table.scatter_nd_add([[row]], tf.ones([1, 4])))

    step(tf.constant(False), tf.constant(1))
    assert not table.numpy().any()
    for row in (1, 2, 2):
        step(tf.constant(True), tf.constant(row))
    np.testing.assert_array_equal(table.numpy()[:4, 0], [0.0, 1.0, 2.0, 0.0])


def test_change_is_made_eagerly_too():
    count = tf.Variable(0)
    do_if(tf.constant(True), lambda: count.assign_add(1))
    do_if(tf.constant(False), lambda: count.assign_add(1))
    assert count.numpy() == 1


def test_compiled_change_copies_nothing():
    table = tf.Variable(tf.zeros([SIZE, 4]))

    def step(condition, row):
        do_if(condition, lambda: table.scatter_nd_update([[row]], tf.ones([1, 4])))
        return tf.constant(0)

    assert whole_copies([[SIZE, 4]], step, tf.constant(True), tf.constant(1)) == 0
