"""Where what grows with the corpus is kept: where the step runs, or in the memory of the host.

An accelerator need not hold what only its mined rows are read of. Operations on what is kept on the
host run there; what they return is copied to the accelerator where it is used.
"""

import contextlib
import functools

import tensorflow as tf

PLACEMENTS = ("device", "host")
_HOST = "CPU:0"


def check_for_variables(placement):
    """Raises a ValueError where variables cannot be made where `placement` says."""
    if placement == "host" and tf.distribute.has_strategy():
        raise ValueError(
            'A strategy of tf.distribute places variables itself: use placement="device" in its scope. '
            f"Received: placement={placement!r} in the scope of a "
            f"{type(tf.distribute.get_strategy()).__name__}"
        )


def kept(placement):
    """Context in which variables and tensors are made, and operations run, where `placement` says."""
    return tf.device(_HOST) if placement == "host" else contextlib.nullcontext()


def where_kept(method):
    """Lets a method of an object run where its `placement` says that its state is.

    As it is written: rewriting what an index calls takes AutoGraph longer than tracing it.
    """

    @tf.autograph.experimental.do_not_convert
    @functools.wraps(method)
    def placed(self, *args, **kwargs):
        with kept(self.placement):
            return method(self, *args, **kwargs)

    return placed
