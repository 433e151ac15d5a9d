import os
import re
import subprocess
import sys

import pytest
import tensorflow as tf

from tf_dynidx.keras_world import IS_KERAS_3, keras


def run(code, **environment):
    """Standard error of a Python process of its own."""
    kept = {k: v for k, v in os.environ.items() if k not in ("KERAS_BACKEND", "TF_USE_LEGACY_KERAS")}
    result = subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True
    )
    return result.stderr


def test_keras_is_the_one_that_tensorflow_uses():
    assert keras.layers.Dense is tf.keras.layers.Dense
    assert keras.Model.__module__.split(".")[0] == ("keras" if IS_KERAS_3 else "tf_keras")
    assert (os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True")) != IS_KERAS_3


def test_package_and_its_models_leave_alone_what_was_not_asked_for():
    code = """
import sys
import tf_dynidx
assert "tensorflow" not in sys.modules
tf_dynidx.DualEncoder
assert "tensorflow" in sys.modules
assert "tensorflow_recommenders" not in sys.modules
print("fine", file=sys.stderr)
"""
    assert run(code, TF_USE_LEGACY_KERAS="1").endswith("fine\n")


@pytest.mark.parametrize(
    "module, environment, message",
    [
        (
            "tf_keras",
            {"TF_USE_LEGACY_KERAS": "1"},
            "pip install tf_keras.*Received: TF_USE_LEGACY_KERAS=1",
        ),
        ("jax", {"KERAS_BACKEND": "jax"}, "Set KERAS_BACKEND=tensorflow.*Received: KERAS_BACKEND=jax"),
    ],
)
def test_missing_keras_is_told_with_what_to_set(module, environment, message):
    # None in sys.modules is Python's way to say that a module cannot be imported.
    error = run(
        f"import sys; sys.modules[{module!r}] = None; import tf_dynidx.keras_world", **environment
    )
    last = error.strip().splitlines()[-1]
    assert last.startswith(
        "ImportError: tf_dynidx runs" if module == "jax" else "ImportError: TensorFlow"
    )
    assert re.search(message, last)
