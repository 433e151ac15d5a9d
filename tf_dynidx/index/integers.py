"""State that an accelerator can hold, integers too."""

import numpy as np
import tensorflow as tf


def state(value, name):
    """A variable that is not trained; of int32, `Integers`.

    Args:
        value: tensor, array or number.
        name: of the variable.
    """
    value = tf.convert_to_tensor(value)
    if value.dtype == tf.int32:
        return Integers(value, name)
    return tf.Variable(value, trainable=False, name=name)


class Integers(tf.Module):
    """What reads and is written as an int32 variable, in a variable of int64.

    TensorFlow keeps variables of int32 in the memory of the host, also beside a GPU: a step that XLA
    compiles cannot read them there, and any other fetches them at every read. Those of int64 are on
    the device, like all others.

    Takes the place of a variable wherever a tensor is asked for, and in `tf.gather`, which reads no
    more than what it returns.

    Attributes:
        variable: the `tf.Variable`.
    """

    def __init__(self, value, name):
        """Makes the variable.

        Args:
            value: int32 tensor or int.
            name: of the variable.
        """
        super().__init__(name=name)
        value = tf.cast(tf.convert_to_tensor(value, tf.int32), tf.int64)
        self.variable = tf.Variable(value, trainable=False, name=name)

    @property
    def shape(self):
        return self.variable.shape

    @property
    def dtype(self):
        return tf.int32

    @property
    def device(self):
        return self.variable.device

    def numpy(self):
        return self.variable.numpy().astype(np.int32)

    def __array__(self, dtype=None, copy=None):
        return np.array(self.numpy(), dtype, copy=copy)

    def __int__(self):
        return int(self.variable)

    def __tf_tensor__(self, dtype=None, name=None):
        value = tf.cast(self.variable, tf.int32, name=name)
        return value if dtype is None else tf.convert_to_tensor(value, dtype)

    def read_value(self):
        return tf.convert_to_tensor(self)

    def sparse_read(self, indices, name=None):
        """What `tf.gather` calls."""
        return tf.cast(self.variable.sparse_read(indices, name=name), tf.int32)

    def assign(self, value):
        self.variable.assign(tf.cast(value, tf.int64))

    def assign_add(self, value):
        """Returns the sum, int32."""
        return tf.cast(self.variable.assign_add(tf.cast(value, tf.int64)), tf.int32)

    def scatter_update(self, slices):
        self.variable.scatter_update(tf.IndexedSlices(tf.cast(slices.values, tf.int64), slices.indices))

    def scatter_add(self, slices):
        self.variable.scatter_add(tf.IndexedSlices(tf.cast(slices.values, tf.int64), slices.indices))

    def scatter_nd_update(self, indices, updates):
        self.variable.scatter_nd_update(indices, tf.cast(updates, tf.int64))


def _of_its_value(operator):
    return lambda self, *others: getattr(tf.convert_to_tensor(self), operator)(*others)


for _operator in ("add", "sub", "mul", "floordiv", "mod", "lt", "le", "gt", "ge", "getitem"):
    setattr(Integers, f"__{_operator}__", _of_its_value(f"__{_operator}__"))
