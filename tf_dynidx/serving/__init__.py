"""Trained towers and their targets as a SavedModel of core operations, and its next versions."""

from tf_dynidx.serving.export import export_retrieval
from tf_dynidx.serving.refresh import refresh_export

__all__ = ["export_retrieval", "refresh_export"]
