"""The Keras of this process: Keras 3, or Keras 2 as `tf_keras`. The one place where that is decided.

TensorFlow chooses at import time: `tf.keras` is Keras 3 unless TF_USE_LEGACY_KERAS=1 is in the
environment before TensorFlow is imported. Everything here follows TensorFlow's choice.
"""

import os

import tensorflow as tf


def _load():
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    try:
        # What only Keras 3 has: neither version says its number in a way that both have.
        is_keras_3 = hasattr(tf.keras, "ops")
    except ImportError as error:
        if backend != "tensorflow":
            raise ImportError(
                "tf_dynidx runs Keras 3 on its TensorFlow backend only. Set "
                f"KERAS_BACKEND=tensorflow, or unset it. Received: KERAS_BACKEND={backend}"
            ) from error
        raise ImportError(
            "TensorFlow found no Keras to use. With TF_USE_LEGACY_KERAS=1 it needs the package "
            "tf_keras (pip install tf_keras); without, the package keras, version 3. "
            f"Received: TF_USE_LEGACY_KERAS={os.environ.get('TF_USE_LEGACY_KERAS')}"
        ) from error
    return tf.keras, is_keras_3


keras, IS_KERAS_3 = _load()
