"""Keras layers: retrieval from an index, and negatives for losses of your own."""

from tf_dynidx.layers.negative_miner import NegativeMiner
from tf_dynidx.layers.tree_top_k import TreeTopK

__all__ = ["NegativeMiner", "TreeTopK"]
