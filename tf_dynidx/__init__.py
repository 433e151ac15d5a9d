"""tf_dynidx: train two-tower retrieval models against the whole corpus, not the batch."""

from tf_dynidx import keras_world, losses, miners
from tf_dynidx.corpus import TargetCorpus
from tf_dynidx.index import DynamicIndex
from tf_dynidx.models import DualEncoder

__all__ = ["DualEncoder", "DynamicIndex", "TargetCorpus", "losses", "miners"]

del keras_world
