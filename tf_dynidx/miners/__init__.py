"""Where negatives come from: one file a method, one protocol (`Miner`)."""

from tf_dynidx.keras_world import keras
from tf_dynidx.miners.exact import Exact
from tf_dynidx.miners.in_batch import InBatch
from tf_dynidx.miners.miner import Miner
from tf_dynidx.miners.mixed import Mixed
from tf_dynidx.miners.negative_cache import NegativeCache
from tf_dynidx.miners.popularity import Popularity
from tf_dynidx.miners.stale import Stale
from tf_dynidx.miners.stochastic import Stochastic
from tf_dynidx.miners.tree import Tree
from tf_dynidx.miners.uniform import Uniform

__all__ = [
    "Exact",
    "InBatch",
    "Miner",
    "Mixed",
    "NegativeCache",
    "Popularity",
    "Stale",
    "Stochastic",
    "Tree",
    "Uniform",
]

for _name in __all__:
    # A miner that a user has written is registered by the user, as any class of Keras is.
    keras.utils.register_keras_serializable("tf_dynidx")(globals()[_name])
