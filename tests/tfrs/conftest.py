"""TensorFlow Recommenders knows Keras 2 only: in the other world there is nothing to be collected."""

from tf_dynidx.keras_world import IS_KERAS_3

collect_ignore = (
    [
        "test_contract.py",
        "test_examples.py",
        "test_mined_retrieval.py",
        "test_replicas.py",
        "test_tree_top_k.py",
    ]
    if IS_KERAS_3
    else []
)
