"""What is refused at the index's door: each check says what was received and what to do."""

import math

import numpy as np
import tensorflow as tf

_BLOCK = 65_536  # rows that are looked at at a time
_LARGEST_SEED = 2**31 - 8  # int32, with room for what is added to tell draws apart


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


def table(name, value, dim):
    """`value` as a floating NumPy array [rows, dim], not copied if it can be helped; or ValueError."""
    if isinstance(value, (list, tuple)):
        value = np.asarray(value, np.float32)
    value = value.numpy() if hasattr(value, "numpy") else value
    if not isinstance(value, np.ndarray) or not tf.as_dtype(value.dtype).is_floating:
        raise ValueError(f"{name} must be floating point. Received: dtype {_dtype_name(value)}")
    if value.ndim != 2 or value.shape[1] != dim:
        raise ValueError(f"{name} must have shape [rows, {dim}]. Received: shape {value.shape}")
    return value


def finite(name, value, stored):
    """Refuses a NumPy array [rows, dim] that is not finite as `stored`, a dtype, with ValueError.

    Reads a block of rows at a time.
    """
    stored = stored.as_numpy_dtype
    for start in range(0, len(value), _BLOCK):
        block = value[start : start + _BLOCK]
        with np.errstate(over="ignore"):
            block = block.astype(np.float32, copy=False)
            kept = block if stored == np.float32 else block.astype(stored).astype(np.float32)
        if not np.isfinite(kept).all():
            row = start + int(np.argmin(np.isfinite(kept).all(axis=1)))
            raise ValueError(
                f"{name} must be finite in {np.dtype(stored).name}; nothing was changed. "
                f"Received: NaN or infinity in row {row}"
            )
        with np.errstate(over="ignore"):
            norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        if not np.isfinite(norms).all():
            raise ValueError(
                f"{name} must have norms that float32 can square; nothing was changed. Received: "
                f"a norm above 1e19 in row {start + int(np.argmin(np.isfinite(norms)))}"
            )


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
    return _whole(name, value, "of at least 1", 1)


def count(name, value):
    """`value` as int; ValueError unless it is a whole number of at least 0."""
    return _whole(name, value, "of at least 0", 0)


def positive_float(name, value):
    """`value` as float; ValueError unless it is a number, positive and finite."""
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite. Received: {name}={value!r}")
    return float(value)


def flag(name, value):
    """`value` as bool; ValueError for anything but True or False, such as "no", which is true."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False. Received: {name}={value!r}")
    return bool(value)


def seed(value):
    """`value` as int; ValueError unless it is a whole number that stateless draws can count from."""
    return _whole("seed", value, f"from 0 to {_LARGEST_SEED}", 0, _LARGEST_SEED)


def _whole(name, value, which, least, most=math.inf):
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number {which}. Received: {name}={value!r}")
    return int(value)


def row_dtype(name, value):
    """`value` as `tf.DType`; ValueError unless rows can be held in it."""
    try:
        dtype = tf.as_dtype(value)
    except TypeError:
        dtype = None
    if isinstance(value, bool) or dtype not in (tf.float32, tf.float16, tf.bfloat16):
        raise ValueError(f"{name} must be float32, float16 or bfloat16. Received: {name}={value!r}")
    return dtype


def _dtype_name(value):
    return getattr(value, "dtype", type(value).__name__)


def one_of(name, value, allowed):
    """Refuses a value that is not among those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}. Received: {name}={value!r}")
