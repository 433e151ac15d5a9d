"""`tf-dynidx bench memory`: a step with many negatives, in chunks and all at once."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import tensorflow as tf

from tf_dynidx.cli import memory
from tf_dynidx.cli.bench.measure import Row
from tf_dynidx.cli.bench.tables import run_parts
from tf_dynidx.corpus import TargetCorpus
from tf_dynidx.keras_world import keras
from tf_dynidx.miners import Uniform
from tf_dynidx.models import DualEncoder

TARGETS, FEATURES, DIM = 20_000, 64, 64
STEPS = 2
_MB = 2**20

TITLES = {
    "memory": "Memory of a training step with candidates of each query's own: peak of a process above "
    "what it held before the step, and its share of that without chunks; MB",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the benchmark can be told.

    Attributes:
        batch: queries a step.
        negatives: drawn and encoded for each query.
        chunk: candidates that are encoded together.
        width, depth: of the target tower's hidden layers.
        seed: seeds data, weights and draws.
        report: file for the figures, or None.
    """

    batch: int = 8
    negatives: int = 1024
    chunk: int = 256
    width: int = 2048
    depth: int = 6
    seed: int = 0
    report: str | None = None


def bench_memory(settings):
    """Runs the benchmark, prints its table and writes the report.

    Args:
        settings: `Settings`.

    Returns:
        int, the exit status, as `run_parts`.
    """
    return run_parts(TITLES, [peaks(settings)], settings)


def peaks(settings):
    """Yields the rows of the table, each from a process of its own: a peak never goes down."""
    whole = None
    for chunk in (None, settings.chunk):
        command = [sys.executable, "-m", __spec__.name]
        text = json.dumps({**dataclasses.asdict(settings), "chunk": chunk})
        done = subprocess.run([*command, text], stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        step = found["peak"] - found["before"]
        whole = step if whole is None else whole
        yield Row(
            "memory",
            {
                "chunk": "none" if chunk is None else chunk,
                "candidates": settings.batch * (1 + settings.negatives),
                "before": found["before"] / _MB,
                "peak": found["peak"] / _MB,
                "step": step / _MB,
                "share": step / whole,
                "loss": found["loss"],
            },
        )


def measured(settings):
    """Trains some steps: dict of bytes held before them, the peak, and the last loss."""
    keras.utils.set_random_seed(settings.seed)
    features = np.random.default_rng(settings.seed).normal(size=[TARGETS, FEATURES])
    features = features.astype(np.float32)
    model = DualEncoder(
        _tower(0, 0),
        _tower(settings.width, settings.depth),
        TargetCorpus(features),
        Uniform(settings.negatives, settings.seed),
        sharing="none",
        encode_chunk=settings.chunk,
        similarity="cosine",
    )
    # Without slots, which are of the size of the weights.
    model.compile(optimizer=keras.optimizers.SGD(0.01), jit_compile=False)
    x = tf.constant(features[: settings.batch])
    y = tf.range(settings.batch)
    before = memory.process_peak()
    for _ in range(STEPS):
        loss = model.train_on_batch(x, y, return_dict=True)["loss"]
    return {"before": before, "peak": memory.process_peak(), "loss": float(loss)}


def _tower(width, depth):
    hidden = [keras.layers.Dense(width, activation="gelu") for _ in range(depth)]
    return keras.Sequential([keras.Input([FEATURES]), *hidden, keras.layers.Dense(DIM)])


if __name__ == "__main__":
    print(json.dumps(measured(Settings(**json.loads(sys.argv[1])))))
