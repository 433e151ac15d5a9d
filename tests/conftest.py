import gc
import os
import shutil

import pytest
import tensorflow as tf
from hypothesis import settings

from tests import reference
from tf_dynidx.keras_world import IS_KERAS_3

# They use no Keras (`index/test_imports.py` holds the first two to that), or little that others do not
# use as well: in one world is enough.
_WITHOUT_KERAS = [
    *("index", "ops", "miners", "server"),
    *("test_identifiers.py", "test_indexes.py", "test_refresh.py", "test_retrieval.py"),
    "test_writing.py",
    *("test_bench_drift.py", "test_bench_index.py", "test_bench_memory.py", "test_bench_placement.py"),
    "test_bench_serve.py",
    *("test_compare.py", "test_compare_process.py", "test_data.py", "test_demo.py"),
    *("test_docstrings.py", "test_estimate.py", "test_training.py"),
]

# What one of the worlds alone has: `tests/tfrs` has its own list.
_OF_ONE_WORLD = {"test_keras_rs.py": True, "test_bench_tfrs.py": False}  # whether that is Keras 3

# Nothing that tests compile runs for long, by XLA or without it: no optimisation, and the kernels that
# take less time to compile. XLA ends the process at a flag that it does not know.
_XLA_FLAGS = ["--xla_backend_optimization_level=0"]
if [int(part) for part in tf.__version__.split(".")[:2]] >= [2, 21]:
    _XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_XLA_FLAGS))
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})

# A first call compiles, so no example has a deadline; and each runs TensorFlow, so there are few.
settings.register_profile("few", deadline=None, max_examples=25)
# The same cases at every run of a continuous integration, so that it speaks of the change alone; new
# ones at every run by hand.
settings.register_profile("same", settings.get_profile("few"), derandomize=True)
settings.load_profile("same" if os.environ.get("CI") else "few")


@pytest.fixture(autouse=True, scope="module")
def lets_go_of_what_a_file_has_compiled():
    """Else a process holds that of all its files in the end, many gigabytes."""
    yield
    reference.forget_indexes()
    gc.collect()


# Needs a browser, which not every machine has; the header of a run says when it is left out.
_WITH_BROWSER = "test_page_in_chromium.py"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_report_header():
    """Says what is not tested here."""
    return None if _has_browser() else f"no Chromium: {_WITH_BROWSER} is left out"


def _has_browser():
    return any(map(shutil.which, _BROWSERS))


def pytest_ignore_collect(collection_path, config):
    """Leaves out the browser's tests where there is none, and what the other world alone has; and in
    Keras 2 what has nothing to do with Keras, unless it is asked for by name."""
    if collection_path.name == _WITH_BROWSER and not _has_browser():
        return True
    if _OF_ONE_WORLD.get(collection_path.name, IS_KERAS_3) != IS_KERAS_3:
        return True
    if IS_KERAS_3 or collection_path.name not in _WITHOUT_KERAS:
        return None
    asked_for = any(collection_path.name in str(argument) for argument in config.args)
    return None if asked_for else True
