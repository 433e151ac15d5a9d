"""What is refused at the index's door: each check says what was received and what to do."""

import numpy as np
import tensorflow as tf


def vectors(name, value, dim, stored=tf.float32):
    """`value` as float32 [rows, dim]; ValueError if it is not that, or not finite as `stored`."""
    if isinstance(value, (list, tuple)):
        value = np.asarray(value, np.float32)
    dtype = tf.as_dtype(value.dtype) if hasattr(value, "dtype") else None
    if dtype is None or not dtype.is_floating:
        raise ValueError(f"{name} must be floating point. Received: dtype {_dtype_name(value)}")
    shape = value.shape
    if len(shape) != 2 or shape[1] != dim:
        raise ValueError(f"{name} must have shape [rows, {dim}]. Received: shape {tuple(shape)}")
    value = tf.cast(value, tf.float32)
    if tf.executing_eagerly():
        finite = tf.math.is_finite(tf.cast(value, stored))
        if not bool(tf.reduce_all(finite)):
            row = int(tf.argmin(tf.cast(tf.reduce_all(finite, axis=1), tf.int32)))
            raise ValueError(
                f"{name} must be finite in {stored.name}; nothing was changed. "
                f"Received: NaN or infinity in row {row}"
            )
    return value


def rows(name, value, capacity):
    """`value` as int32 [rows], distinct and within capacity; ValueError otherwise."""
    value = np.asarray(value)
    if value.ndim != 1 or not np.issubdtype(value.dtype, np.integer):
        raise ValueError(
            f"{name} must be a vector of integers. Received: shape {value.shape}, dtype {value.dtype}"
        )
    if value.size and (value.min() < 0 or value.max() >= capacity):
        bad = value[(value < 0) | (value >= capacity)][0]
        raise ValueError(
            f"{name} must lie in 0..{capacity - 1} (the capacity is {capacity}); nothing was "
            f"changed. Received: {bad}"
        )
    distinct, times = np.unique(value, return_counts=True)
    if len(distinct) < len(value):
        raise ValueError(
            f"{name} must not repeat a row in one call; nothing was changed. "
            f"Received: row {distinct[times.argmax()]} {times.max()} times"
        )
    return value.astype(np.int32)


def beta(value):
    """`value` as float32 scalar; ValueError unless positive and finite."""
    if not tf.is_tensor(value) and not (
        isinstance(value, (int, float, np.number)) and 0 < value <= float(tf.float32.max)
    ):
        raise ValueError(f"beta must be positive and finite. Received: beta={value!r}")
    value = tf.cast(value, tf.float32)
    if tf.executing_eagerly() and not (bool(tf.math.is_finite(value)) and float(value) > 0):
        raise ValueError(f"beta must be positive and finite. Received: beta={float(value)}")
    return value


def positive_int(name, value):
    """`value` as int; ValueError unless it is a whole number of at least 1."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1. Received: {name}={value!r}")
    return int(value)


def _dtype_name(value):
    return getattr(value, "dtype", type(value).__name__)
