"""tf_dynidx: train two-tower retrieval models against the whole corpus, not the batch."""

import importlib

# What is imported when it is first asked for: `import tf_dynidx` itself loads no TensorFlow, so that
# the command line answers at once and environment variables can still be set.
_CLASSES = {
    "DualEncoder": "tf_dynidx.models",
    "DynamicIndex": "tf_dynidx.index",
    "TargetCorpus": "tf_dynidx.corpus",
}
_MODULES = ("callbacks", "layers", "losses", "metrics", "miners", "serving")

# Needs Keras 2 and TensorFlow Recommenders: not among what `from tf_dynidx import *` asks for.
_OPTIONAL_MODULES = ("tfrs",)

__all__ = [*_CLASSES, *_MODULES]


def __getattr__(name):
    if name in _CLASSES:
        return getattr(importlib.import_module(_CLASSES[name]), name)
    if name in (*_MODULES, *_OPTIONAL_MODULES):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*__all__, *_OPTIONAL_MODULES]
