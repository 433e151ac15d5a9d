"""Retrieval quality over the whole corpus."""

from tf_dynidx.metrics.corpus_metrics import CorpusMRR, CorpusNDCG, CorpusRecall
from tf_dynidx.metrics.ranking import positive_ranks, ranking_metrics

__all__ = ["CorpusMRR", "CorpusNDCG", "CorpusRecall", "positive_ranks", "ranking_metrics"]
