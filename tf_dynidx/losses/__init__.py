"""Losses over encodings."""

from tf_dynidx.losses.sampled_softmax import log_expected_counts, sampled_softmax

__all__ = ["log_expected_counts", "sampled_softmax"]
