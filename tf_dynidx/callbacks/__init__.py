"""Callbacks that watch, refresh and evaluate on a schedule."""

from tf_dynidx.callbacks.corpus_evaluation import CorpusEvaluation
from tf_dynidx.callbacks.index_monitor import IndexMonitor
from tf_dynidx.callbacks.index_refresh import IndexRefresh

__all__ = ["CorpusEvaluation", "IndexMonitor", "IndexRefresh"]
