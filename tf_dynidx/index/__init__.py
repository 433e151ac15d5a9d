"""The dynamic index: a table of target encodings, a tree over it, and what keeps both true."""

from tf_dynidx.index.dynamic_index import DynamicIndex, Sample

__all__ = ["DynamicIndex", "Sample"]
