"""Variables of `tf.Module`s in the files of Keras, which leaves them out by itself.

Each goes under the name that a `tf.train.Checkpoint` gives it.
"""

import collections

import numpy as np
import tensorflow as tf


def named_variables(module):
    """The variables of a `tf.Module` and of all modules, lists and dicts in it.

    Returns:
        dict from name, "index.tree.rows", to `tf.Variable`, sorted by name.
    """
    view, seen, found = tf.train.TrackableView(module), set(), {}
    # Breadth first, as TensorFlow does it: of several names that lead to a variable, the shortest.
    waiting = collections.deque([("", module)])
    while waiting:
        path, holder = waiting.popleft()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        if isinstance(holder, tf.Variable):
            found[path] = holder
            continue
        children = sorted(view.children(holder).items())
        waiting.extend((f"{path}.{name}".lstrip("."), child) for name, child in children)
    return dict(sorted(found.items()))


def write(variables, store):
    """Puts variables into a store of Keras, which takes arrays by name."""
    for name, variable in variables.items():
        value = variable.numpy()
        # HDF5 has no bfloat16.
        store[name] = value.view(np.uint16) if variable.dtype == tf.bfloat16 else value


def read(variables, store, besides=()):
    """Fills variables from a store of Keras.

    Args:
        variables: dict from name to `tf.Variable`.
        store: arrays by name.
        besides: names in the store that are no variables.

    Raises:
        ValueError: the store does not hold just these variables in just these shapes; none is changed.
    """
    names = set(store.keys()) - set(besides)
    missing, unknown = sorted(variables.keys() - names), sorted(names - variables.keys())
    if missing or unknown:
        raise ValueError(
            "The file was saved from another model: make this one with the same miner and the same "
            f"options, or load with skip_mismatch=True. Received: a file without {missing}, "
            f"and with {unknown} besides"
        )
    values = {name: np.asarray(store[name]) for name in variables}
    for name, value in values.items():
        if value.shape != tuple(variables[name].shape):
            raise ValueError(
                "The file was saved from a model of another size: it needs the same corpus, dimension "
                f"and options. Received: {name} of shape {value.shape} for one of shape "
                f"{tuple(variables[name].shape)}"
            )
    for name, variable in variables.items():
        value = values.pop(name)
        bfloat16 = variable.dtype == tf.bfloat16
        variable.assign(value.view(tf.bfloat16.as_numpy_dtype) if bfloat16 else value)
