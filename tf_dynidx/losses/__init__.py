"""Losses over encodings."""

from tf_dynidx.losses.false_negatives import suspected_positives
from tf_dynidx.losses.mined_softmax import SampledSoftmax
from tf_dynidx.losses.sampled_softmax import (
    log_expected_counts,
    log_expected_own_counts,
    sampled_softmax,
)

__all__ = [
    "SampledSoftmax",
    "log_expected_counts",
    "log_expected_own_counts",
    "sampled_softmax",
    "suspected_positives",
]
