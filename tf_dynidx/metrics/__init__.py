"""Retrieval quality over the whole corpus, exact."""

from tf_dynidx.metrics.ranking import positive_ranks, ranking_metrics

__all__ = ["positive_ranks", "ranking_metrics"]
