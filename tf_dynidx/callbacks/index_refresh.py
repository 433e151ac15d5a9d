"""`IndexRefresh`: repairs the index, or encodes all of it again, on a schedule."""

import numpy as np

from tf_dynidx.callbacks.schedule import ScheduledOnIndex
from tf_dynidx.index import checks
from tf_dynidx.keras_world import keras


@keras.utils.register_keras_serializable(package="tf_dynidx")
class IndexRefresh(ScheduledOnIndex):
    """Puts the rows of the index that have moved where they belong; with `full`, encodes all afresh.

    Training needs neither: the miner keeps its index true by itself, at little cost a step. A repair
    is more thorough than that upkeep; a full refresh costs one encoding of all targets, and is for
    encoders that move faster than the miner can follow. Where the miner has no index, nothing is done,
    and a warning says so.

    Adds to the logs "index/rows_moved", how many rows changed leaf.

    Args:
        every: "epoch" (default): at the end of each; or int, every so many steps.
        full: bool, whether to encode all targets afresh.

    Raises:
        ValueError: `every` is neither "epoch" nor a whole number of at least 1.

    Example:

        model.fit(dataset, epochs=3, callbacks=[IndexRefresh(every=1000)])
    """

    def __init__(self, every="epoch", full=False):
        super().__init__(every)
        self.full = checks.flag("full", full)

    def act_on(self, index):
        if self.full:
            self._encode_all(index)
        return {"index/rows_moved": float(index.repair())}

    def _encode_all(self, index):
        encodings = self.model.encode_corpus()
        rows = np.arange(len(encodings), dtype=np.int32)
        held = index.tree.contains(rows).numpy()  # rows may have been removed
        index.update(rows[held], encodings[held])
        self.model.miner.full_encodes.assign_add(1)
        self.model.miner.rows_encoded.assign_add(len(encodings))

    def get_config(self):
        return super().get_config() | {"full": self.full}
