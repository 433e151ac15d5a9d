"""`tf-dynidx bench placement`: what an accelerator must hold to train beside many targets."""

import dataclasses
import json
import subprocess
import sys

from tf_dynidx.cli.bench.measure import Row
from tf_dynidx.cli.bench.placed_training import K
from tf_dynidx.cli.bench.tables import run_parts

_MB = 2**20
_TRAINING = "tf_dynidx.cli.bench.placed_training"

TITLES = {
    "placement": "Training beside N targets: MB of variables and features on the accelerator (of its "
    "peak too, where there is one; else a second logical CPU stands in for it) and on the host, "
    "without the towers, which are alike; how many times less the accelerator holds, and has at its "
    "peak, than with the cache; recall "
    f"of the best {K}",
}
# A method: name, placement of the corpus.
_METHODS = (
    ("cache", "device"),
    ("tree", "device"),
    ("tree", "host"),
    ("in-batch", "host"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the benchmark can be told.

    Attributes:
        rows: targets.
        steps: of each training.
        batch: queries a step.
        dim: dimensions of an encoding.
        seed: seeds data, weights and draws.
        report: file for the figures, or None.
    """

    rows: int = 1_000_000
    steps: int = 200
    batch: int = 512
    dim: int = 64
    seed: int = 0
    report: str | None = None


def bench_placement(settings):
    """Runs the benchmark, prints its table and writes the report.

    Args:
        settings: `Settings`.

    Returns:
        int, the exit status, as `run_parts`.
    """
    return run_parts(TITLES, [compared(settings)], settings)


def compared(settings):
    """Yields the rows of the table, each from a process of its own: a peak never goes down."""
    cache = cache_peak = None
    for miner, placement in _METHODS:
        command = [sys.executable, "-m", _TRAINING]
        asked = {**dataclasses.asdict(settings), "miner": miner, "placement": placement}
        del asked["report"]
        done = subprocess.run(
            [*command, json.dumps(asked)], stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        peak = found["peak"]
        if cache is None:
            cache, cache_peak = found["accelerator"], peak
        yield Row(
            "placement",
            {
                "miner": miner,
                "corpus_on": placement,
                "miner's": found["miner"] / _MB,
                "features": found["features"] / _MB,
                "counts": found["counts"] / _MB,
                "accelerator": found["accelerator"] / _MB,
                "host": found["host"] / _MB,
                "times_less": cache / found["accelerator"],
                "peak": None if peak is None else peak / _MB,
                "peak_times_less": None if peak is None else cache_peak / peak,
                f"recall@{K}": found["recall"],
                "loss": found["loss"],
                "seconds_a_step": found["seconds"],
            },
        )
