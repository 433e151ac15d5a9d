"""Trained towers and their targets as a SavedModel of core TensorFlow operations."""

from tf_dynidx.serving.export import export_retrieval

__all__ = ["export_retrieval"]
