import os
import re
import subprocess
import sys

import pytest

_BREAKS = """
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow_recommenders":
            from tensorflow.errors import NotFoundError
            raise NotFoundError(None, None, "an operation of another release")
sys.meta_path.insert(0, Broken())
"""


@pytest.mark.parametrize(
    "legacy, block, received",
    [
        ("0", "", "Received: Keras 3"),
        (
            "1",
            "sys.modules['tensorflow_recommenders'] = None",
            "Received: ModuleNotFoundError",
        ),
        # As beside a ScaNN of another TensorFlow: what is raised is no ImportError.
        ("1", _BREAKS, "Received: NotFoundError: an operation of another release"),
    ],
)
def test_where_it_cannot_be_imported_the_error_says_what_to_set(legacy, block, received):
    code = f"import sys; {block or 'pass'}\nimport tf_dynidx.tfrs"
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"TF_USE_LEGACY_KERAS": legacy},
        capture_output=True,
        text=True,
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: tf_dynidx.tfrs needs")
    assert re.search("TF_USE_LEGACY_KERAS=1 before TensorFlow is imported.*pip install tf_keras", last)
    assert received in last
