"""Large: time and memory of an index of tens of millions of rows."""

import numpy as np

from tf_dynidx.cli import encodings as random_encodings
from tf_dynidx.cli.bench import measure
from tf_dynidx.cli.bench.measure import BATCH, K, Note, Row, seconds
from tf_dynidx.cli.bench.upkeep import MOVED_SHARE, STEP, step

ROWS = 20_000_000
DIM = 64
SAMPLES = 64
BETA = 20.0
ROUNDS = 5

TITLES = {
    "large": f"Large: dimension {DIM}, float16; {BATCH} queries a call. Resident memory includes the "
    "benchmark's own copy of the encodings",
    "large_memory": "Large: what the index says it holds, in bytes",
}


def large(settings):
    """Yields a row for each operation, then one for each part of the index's memory."""
    number = settings.rows or ROWS
    with measure.PeakMemory() as memory:
        data = random_encodings.clustered(
            number, DIM, BATCH, settings.seed, "float16", progress=settings.progress
        )
        kth = measure.kth_scores(data.queries, data.targets)
    targets, queries = data.targets, data.queries
    if memory.since_start:
        yield Note("Peaks are of the whole process so far: this system cannot forget an earlier one.")
    yield _row("encodings, exact answers", number, None, memory)

    index = measure.DynamicIndex(DIM, number, dtype="float16", seed=settings.seed)
    with measure.PeakMemory() as memory:
        taken = seconds(lambda: index.build(targets, progress=settings.progress))
    yield _row("build", number, taken, memory)

    queries_tensor = measure.full_batch(queries)
    operations = {
        f"sample, {SAMPLES} draws": lambda: index.sample(queries_tensor, SAMPLES, BETA).ids.numpy(),
        f"search, best {K}": lambda: index.search(queries_tensor, K)[1].numpy(),
    }
    for name, call in operations.items():
        with measure.PeakMemory() as memory:
            taken = measure.alternating({name: call}, ROUNDS, settings.progress, name)[name]
        yield _row(name, number, taken, memory)
    rows = measure.in_batches(measure.search_rows(index), queries)
    found = measure.recall(rows, queries, targets, kth)
    yield Note(
        f"Search at the default budget: recall@{K} {found:.3f} at a cost of "
        f"{index.search_cost(K):,.0f} dot products a query, {index.search_cost(K) / number:.3%} of all."
    )

    rng = np.random.default_rng([settings.seed, 8])
    # Twice: the first time compiles.
    for name in ("first time, compiling", "second time"):
        moved, fresh = step(targets, rng, max(1, round(MOVED_SHARE * number)), STEP)
        with measure.PeakMemory() as memory:
            taken = seconds(lambda moved=moved, fresh=fresh: index.update(moved, fresh))
        yield _row(f"update of {MOVED_SHARE:.0%}, {name}", number, taken, memory)
        with measure.PeakMemory() as memory:
            taken = seconds(index.repair)
        yield _row(f"repair, {name}", number, taken, memory)
    held = index.memory()
    for name, number_of_bytes in held.items():
        yield Row("large_memory", {"part": name, "bytes": int(number_of_bytes)})


def _row(operation, number, taken, memory):
    values = {"operation": operation, "targets": number, "seconds": taken}
    values |= {"resident_before_bytes": memory.before, "resident_peak_bytes": memory.peak}
    return Row("large", values)
