"""Keras models."""

from tf_dynidx.models.dual_encoder import DualEncoder

__all__ = ["DualEncoder"]
