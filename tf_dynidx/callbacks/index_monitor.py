"""`IndexMonitor`: how well the index follows the encoder, in the logs and in TensorBoard."""

import os

import numpy as np
import tensorflow as tf

from tf_dynidx.callbacks.mining_time import MiningTime
from tf_dynidx.callbacks.schedule import ScheduledOnIndex
from tf_dynidx.callbacks.summaries import write_histogram, write_scalar
from tf_dynidx.index import checks
from tf_dynidx.keras_world import keras

_QUERIES = 64  # rows whose encodings are asked with
_DRAWS = 64  # for each of them


@keras.utils.register_keras_serializable(package="tf_dynidx")
class IndexMonitor(ScheduledOnIndex):
    """Logs the state of the miner's index, under names that begin with "index/".

    - Every number of `DynamicIndex.stats()` by its place, such as "index/moved_rows" or
      "index/levels/0/radius_median", and of `DynamicIndex.staleness`, such as
      "index/staleness/sampling_error".
    - "index/full_encodes": how often all targets were encoded so far.
    - "index/certificate_width": upper minus lower bound of the log partition, median over queries.
    - "index/effective_targets": as many equally likely targets would make draws coincide as often as
      the softmax does: 1 / sum_y p(y)^2, median over queries.
    - "index/effective_sample_size": what 64 draws are worth, repeats considered: 64^2 over the sum of
      the squared numbers of times that each row came, median over queries.
    - "index/seconds_a_step": wall time of the training steps since the last time.
    - "index/share_mining", if `batch_size` is given: the time that mining takes in a step, as a share
      of the time of a step: "index/share_drawing", "index/share_writing" and "index/share_refreshing"
      together. Each is run by itself, outside the step (`MiningTime` says how), so the shares are not
      exact: what a step does at the same time counts in full, and a part by itself may be slower.

    The queries are encodings of 64 random rows, another 64 each time; draws are seeded apart from the
    miner's, and what the timing changes is put back, so that watching changes nothing. Timing copies
    the miner's variables to the host and back, and compiles what it times once. With `log_dir`, all of
    this is written for TensorBoard as scalars, and the radii of nodes, the rows and the children that
    they have as histograms. Where the miner has no index, nothing is logged, and a warning says so.

    Args:
        log_dir: folder for TensorBoard's event files; default: none are written.
        every: "epoch" (default): at the end of each; or int, every so many steps. Into the logs, which
            Keras keeps by epoch, goes what was found last; `history` has everything.
        batch_size: int, queries a step; default: the shares are left out.
        seed: int, seeds the choice of rows and the draws.

    Raises:
        ValueError: an argument is not as described.

    Example:

        model.fit(dataset, epochs=3, callbacks=[IndexMonitor(log_dir="logs")])
    """

    def __init__(self, log_dir=None, every="epoch", batch_size=None, seed=0):
        super().__init__(every)
        if log_dir is not None and not isinstance(log_dir, str | os.PathLike):
            raise ValueError(f"log_dir must be a folder or None. Received: log_dir={log_dir!r}")
        self.log_dir = None if log_dir is None else os.fspath(log_dir)
        self.batch_size = batch_size
        if batch_size is not None:
            self.batch_size = checks.positive_int("batch_size", batch_size)
        self.seed = checks.seed(seed)
        self._writer = self._mining = None

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._mining = None

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def act_on(self, index):
        beta = float(self.model.beta)  # it may be learned
        found = numbers(index.stats()) | numbers(index.staleness(beta), "staleness")
        found["full_encodes"] = float(self.model.miner.full_encodes.numpy())
        if index.size:
            found |= self._asked(index, beta)
        found = {f"index/{name}": value for name, value in found.items()}
        if self.log_dir is not None:
            self._write(found, index)
        return found

    def _asked(self, index, beta):
        """What sampling and bounding say, for some rows as queries."""
        rng = np.random.default_rng([self.seed, self._step])
        seed = [self.seed, self._step]
        held = np.flatnonzero(index.tree.contains(tf.range(index.capacity)).numpy())
        queries = index.read(rng.choice(held, _QUERIES).astype(np.int32))
        lower, _, upper = (bound.numpy() for bound in index.log_partition(queries, beta))
        draws = min(_DRAWS, index.size)
        sample = index.sample(queries, draws, beta, seed=seed)
        likely = np.exp(sample.log_prob.numpy()).mean(axis=1)  # the mean of p over draws from p
        repeats = [np.unique(ids, return_counts=True)[1] for ids in sample.ids.numpy()]
        worth = [draws**2 / np.sum(times.astype(np.float64) ** 2) for times in repeats]
        found = {
            "certificate_width": float(np.median(upper - lower)),
            "effective_targets": float(np.median(1.0 / likely)),
            "effective_sample_size": float(np.median(worth)),
        }
        step = self._timer.seconds_a_step()
        if step is not None:
            found["seconds_a_step"] = step
            if self.batch_size is not None and self.model.miner.num_negatives:
                if self._mining is None:
                    self._mining = MiningTime(self.model)
                positives = rng.choice(held, self.batch_size).astype(np.int32)
                taken = self._mining.seconds_a_step(positives)
                found |= {f"share_{part}": seconds / step for part, seconds in taken.items()}
                found["share_mining"] = sum(taken.values()) / step
        return found

    def _write(self, found, index):
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(os.path.join(self.log_dir, "index"))
        with self._writer.as_default():
            for name, value in found.items():
                write_scalar(name, value, self._step)
            for place, level in enumerate(index.tree.levels):
                counts = level.counts.numpy()
                used = counts > 0
                prefix = f"index/levels/{place}"
                write_histogram(f"{prefix}/radii", level.radii.numpy()[used], self._step)
                write_histogram(f"{prefix}/rows", counts[used], self._step)
                if place:
                    below = index.tree.levels[place - 1].counts.numpy().reshape(len(counts), -1)
                    children = (below > 0).sum(axis=1)
                    write_histogram(f"{prefix}/children", children[used], self._step)
        self._writer.flush()

    def get_config(self):
        config = {"log_dir": self.log_dir, "batch_size": self.batch_size, "seed": self.seed}
        return super().get_config() | config


def numbers(tree, name=""):
    """Numbers in nested dicts and lists, by path: {"levels/0/nodes": 35.0, ...}; all else left out."""
    if isinstance(tree, dict):
        children = tree.items()
    elif isinstance(tree, list | tuple):
        children = enumerate(tree)
    elif np.ndim(tree) == 0 and np.issubdtype(np.asarray(tree).dtype, np.number):
        return {name: float(tree)}
    else:
        return {}
    found = {}
    for key, value in children:
        found |= numbers(value, f"{name}/{key}" if name else str(key))
    return found
