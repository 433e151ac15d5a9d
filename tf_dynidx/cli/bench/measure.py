"""What the parts of a benchmark share: rows of tables, timing, batches, exact answers, memory."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tf_dynidx.cli import memory
from tf_dynidx.index import DynamicIndex

BATCH = 256  # queries a call: always as many, so that nothing is compiled twice
K = 100  # targets that a search is for
TIES = 1e-6  # a score that is so much less than the last of the exact best counts as equal to it

_BLOCK = 65_536  # targets that are scored at a time where all of them are


class Row(NamedTuple):
    """One measured row of a table: the table's name, and a value for each column, None for none."""

    table: str
    values: dict[str, Any]


class Note(NamedTuple):
    """A line about what was or was not measured."""

    text: str


def built(targets, seed, progress=False):
    """A `DynamicIndex` of the targets, its rows of their dtype."""
    index = DynamicIndex(targets.shape[1], len(targets), dtype=targets.dtype.name, seed=seed)
    index.build(targets, progress=progress)
    return index


def seconds(call):
    """Wall time of one call, which must wait for its result."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def alternating(sides, rounds, progress=False, desc="timing"):
    """Median seconds of several calls, taken in turn, so that whatever else the machine does hits all.

    Args:
        sides: dict from name to a function without arguments that waits for its result. Each is called
            once before, untimed: a first call compiles.
        rounds: int, how often each is timed.
        progress, desc: whether to show a bar, and what it says.

    Returns:
        dict from name to float.
    """
    times = {name: [] for name in sides}
    with tqdm(total=(rounds + 1) * len(sides), desc=desc, unit="", disable=not progress) as bar:
        for round_number in range(rounds + 1):
            for name, call in sides.items():
                taken = seconds(call)
                if round_number:
                    times[name].append(taken)
                bar.update()
    return {name: float(np.median(taken)) for name, taken in times.items()}


def in_batches(call, queries, batch=BATCH):
    """Calls a function with batches of queries, all of one size, and joins what it returns.

    Args:
        call: function from float32 [batch, dim] to an array [batch, ...].
        queries: float32 [queries, dim]; the last batch is filled up with the first ones.
        batch: int.

    Returns:
        NumPy array [queries, ...].
    """
    return np.concatenate([call(block) for block in blocks(queries, batch)])[: len(queries)]


def blocks(queries, batch=BATCH):
    """The queries in batches of one size, the last filled up with the first ones."""
    number = -(-len(queries) // batch) * batch
    filled = np.resize(queries, [number, queries.shape[1]])
    return [filled[start : start + batch] for start in range(0, number, batch)]


def full_batch(queries, batch=BATCH):
    """One batch of queries: float32 [batch, dim]."""
    return blocks(queries[:batch], batch)[0]


def search_rows(index, k=K, budget=None):
    """A search as a function from queries to rows, both NumPy."""
    return lambda queries: index.search(queries, k, budget=budget)[1].numpy()


def kth_scores(queries, targets, k=K):
    """The exact k-th best score of each query, by enumeration: float32 [queries]."""
    best = np.full([len(queries), k], -np.inf, np.float32)
    for start in range(0, len(targets), _BLOCK):
        scores = queries @ targets[start : start + _BLOCK].astype(np.float32).T
        if scores.shape[1] > k:
            scores = np.partition(scores, -k, axis=1)[:, -k:]
        best = np.partition(np.concatenate([best, scores], axis=1), -k, axis=1)[:, -k:]
    return best.min(axis=1)


def recall(rows, queries, targets, kth):
    """Share of the exact best k that a search has found, where equals count as found.

    Args:
        rows: int [queries, k], what was found; -1 for nothing. A row counts once.
        queries: float32 [queries, dim].
        targets: float [targets, dim].
        kth: float32 [queries], what `kth_scores` says for the same k.

    Returns:
        float, the mean over queries.
    """
    rows = np.sort(rows, axis=1)
    new = np.diff(rows, axis=1, prepend=-1) != 0
    found = targets[np.maximum(rows, 0)].astype(np.float32)
    scores = np.einsum("qd,qkd->qk", queries, found)
    return float(np.mean((scores >= kth[:, None] - TIES) & new & (rows >= 0)))


class PeakMemory:
    """The most memory that was resident while the block ran.

    Attributes:
        before: int, bytes resident when it began; None where the system does not tell.
        peak: int, bytes, once the block is left.
        since_start: bool, whether the system cannot forget an earlier peak, so that `peak` is that of
            the whole process so far.
    """

    def __enter__(self):
        try:
            # 5: forget the peak. Linux only, and not in every container.
            Path("/proc/self/clear_refs").write_text("5")
            self.before = memory.status("VmRSS")
            self.since_start = False
        except OSError:
            self.before = None
            self.since_start = True
        return self

    def __exit__(self, *exception):
        if self.since_start:
            self.peak = memory.since_start()
        else:
            self.peak = memory.status("VmHWM")
