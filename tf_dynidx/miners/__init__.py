"""Where negatives come from: one file a method, one protocol (`Miner`)."""

from tf_dynidx.miners.exact import Exact
from tf_dynidx.miners.in_batch import InBatch
from tf_dynidx.miners.miner import Miner
from tf_dynidx.miners.tree import Tree
from tf_dynidx.miners.uniform import Uniform

__all__ = ["Exact", "InBatch", "Miner", "Tree", "Uniform"]
