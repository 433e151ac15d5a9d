"""Writing to variables in place, also inside a step that XLA compiles."""

import tensorflow as tf

from tf_dynidx.ops.nodes import NEVER


def ids_after(*read, ids):
    """The same ids, computed from what was read.

    A scatter into a variable is done in place only where every read of that variable comes before it.
    XLA takes no notice of the order of operations in a program, but of what is computed from what:
    where a read might come later it copies the variable, all rows of it, at every step. Indices that
    pass through here have the scatter wait for the reads.

    Args:
        read: tensors, what was read.
        ids: int32 [ids], `NEVER` or above.
    """
    for each in read:
        # NEVER or less, so that the maximum is the id itself; which the compiler cannot know.
        missing = tf.reduce_any(tf.math.is_nan(tf.cast(each, tf.float32)))
        ids = tf.maximum(ids, NEVER - tf.cast(missing, tf.int32))
    return ids


def do_if(condition, change):
    """Makes a change to variables if the condition holds.

    As a loop of no round or one: XLA updates the variables of a loop in place, while those that a
    branch of `tf.cond` may change are copied at every call, also by the branch that changes nothing.

    Args:
        condition: bool scalar.
        change: function without arguments; what it returns is dropped.
    """

    def once(_):
        change()
        return (tf.constant(False),)

    tf.while_loop(lambda pending: pending, once, (condition,))
