"""For TensorFlow Recommenders: a retrieval task and a top-k layer with its conventions.

Imported only when asked for, and in Keras 2 only: TensorFlow Recommenders knows no other.
"""

import os

from tf_dynidx.keras_world import IS_KERAS_3

_REMEDY = (
    "tf_dynidx.tfrs needs TensorFlow Recommenders, which needs Keras 2: set TF_USE_LEGACY_KERAS=1 "
    "before TensorFlow is imported, and pip install tf_keras tensorflow-recommenders."
)

if IS_KERAS_3:
    raise ImportError(
        f"{_REMEDY} Received: Keras 3, TF_USE_LEGACY_KERAS={os.environ.get('TF_USE_LEGACY_KERAS')}"
    )
try:
    import tensorflow_recommenders  # noqa: F401
except Exception as error:  # beside ScaNN it raises what TensorFlow raises, not ImportError
    raise ImportError(f"{_REMEDY} Received: {type(error).__name__}: {error}") from error

from tf_dynidx.tfrs.mined_retrieval import MinedRetrieval  # noqa: E402
from tf_dynidx.tfrs.tree_top_k import TreeTopK  # noqa: E402

__all__ = ["MinedRetrieval", "TreeTopK"]
