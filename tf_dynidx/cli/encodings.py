"""Encodings to measure an index on: random clustered ones, a file's, or a trained model's."""

import os
import zipfile
import zlib
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tf_dynidx.cli.data import DataError, Pairs, Targets

MIN_TARGETS = 128  # fewer, and neither 64 draws nor the best 100 say anything

_BLOCK = 65_536  # rows that are made at a time
# Lengths of the random steps from a direction to a centre of its sub-mixture, and from there to a
# row. Two rows of one centre have a cosine of 1 / (1 + 0.55**2) = .77 on average; the nearest of some
# tens of them comes to .8 to .9. Two rows of one direction have .47.
_CENTRE_STEP = 0.8
_ROW_STEP = 0.55


class Encodings(NamedTuple):
    """Targets and queries to measure on.

    Attributes:
        name: str, what they are called in a table.
        targets: float32 or float16 [targets, dim].
        queries: float32 [queries, dim].
    """

    name: str
    targets: np.ndarray
    queries: np.ndarray


def clustered(number, dim, num_queries, seed=0, dtype="float32", progress=False):
    """Random unit vectors in clusters of clusters, as encodings of real targets are.

    A mixture of sqrt(N) directions, each a mixture of N^(1/4) centres, each with some N^(1/4) rows.
    Queries are drawn from the same mixture. The same arguments give the same numbers, whatever the
    dtype, which only rounds them.

    Args:
        number: int, N.
        dim: int.
        num_queries: int.
        seed: int.
        dtype: "float32" or "float16", of the targets. They are made a block at a time: nothing else of
            their size is held.
        progress: bool, whether to show a bar.

    Returns:
        `Encodings`.
    """
    directions = max(1, round(number**0.5))
    each = max(1, round(directions**0.5))
    rng = np.random.default_rng([seed, 0])
    centres = np.repeat(_unit(rng.standard_normal([directions, dim], np.float32)), each, axis=0)
    centres = moved(centres, rng, _CENTRE_STEP)

    def rows(rng, size):
        return moved(centres[rng.integers(len(centres), size=size)], rng, _ROW_STEP)

    queries = rows(np.random.default_rng([seed, 1]), num_queries)
    targets = np.empty([number, dim], dtype)
    with tqdm(total=number, desc="random encodings", unit="", disable=not progress) as bar:
        for start in range(0, number, _BLOCK):
            block = targets[start : start + _BLOCK]
            block[:] = rows(np.random.default_rng([seed, 2, start]), len(block))
            bar.update(len(block))
    return Encodings("clustered", targets, queries)


def moved(vectors, rng, length):
    """The vectors after a random step of about the given length, brought back to norm one: float32."""
    steps = rng.standard_normal(vectors.shape, np.float32)
    return _unit(vectors.astype(np.float32) + np.float32(length / vectors.shape[1] ** 0.5) * steps)


def read(path: str | os.PathLike) -> Encodings:
    """Encodings from a NumPy archive with the arrays `targets` and `queries`.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read. Received: {error.strerror or error}. Name a NumPy archive (.npz)."
        ) from error
    # What NumPy raises on files of other kinds: pickles, single arrays, text, broken archives.
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: not a NumPy archive of arrays. Received: a file of another kind, or broken. "
            "Write one with numpy.savez(path, targets=..., queries=...)."
        ) from error
    missing = [name for name in ("targets", "queries") if name not in arrays]
    if missing:
        raise DataError(
            f"{path}: needs the arrays 'targets' and 'queries'. Received: {sorted(arrays)}. "
            "Write them with numpy.savez(path, targets=..., queries=...)."
        )
    return checked(Encodings("real", arrays["targets"], arrays["queries"]), path)


def trained(targets: Targets, pairs: Pairs, test: Pairs, steps, seed, progress=False) -> Encodings:
    """Encodings of all targets and of the test queries by a model trained with in-batch negatives.

    Raises:
        KeyboardInterrupt: Ctrl-C during training.
    """
    # Imported here: TensorFlow takes seconds to import, and reading a file needs none.
    from tf_dynidx.cli.training import Settings, train

    settings = Settings(miner="in-batch", steps=steps, seed=seed)
    model = train(targets, pairs, test, settings, progress=progress)
    if model.interrupted:
        raise KeyboardInterrupt
    return checked(Encodings("real", *model.encodings()), "the trained model")


def checked(encodings: Encodings, source) -> Encodings:
    """The encodings as float32, or refused if nothing can be measured on them.

    Raises:
        DataError: they are not finite matrices of one dimension, or there are too few.
    """
    for name in ("targets", "queries"):
        array = getattr(encodings, name)
        if array.ndim != 2 or array.size == 0 or not np.issubdtype(array.dtype, np.floating):
            raise DataError(
                f"{source}: {name} must be floats of shape [{name}, dim]. "
                f"Received: {array.dtype} of shape {list(array.shape)}."
            )
        if not np.isfinite(array).all():
            raise DataError(
                f"{source}: {name} must be finite. Received: NaN or infinity in "
                f"{np.sum(~np.isfinite(array).all(axis=1))} of {len(array)} rows. Leave those rows out."
            )
    targets, queries = encodings.targets, encodings.queries
    if targets.shape[1] != queries.shape[1]:
        raise DataError(
            f"{source}: targets and queries must have one dimension. "
            f"Received: {targets.shape[1]} and {queries.shape[1]}."
        )
    if len(targets) < MIN_TARGETS or (targets == targets[0]).all():
        raise DataError(
            f"{source}: at least {MIN_TARGETS} targets, not all alike, are needed to measure on. "
            f"Received: {len(targets)}. Without any, random encodings are measured on."
        )
    return Encodings(encodings.name, targets.astype(np.float32), queries.astype(np.float32))


def _unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
