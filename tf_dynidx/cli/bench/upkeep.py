"""Upkeep: what it takes to follow rows that move, and what an index that has followed is worth."""

import numpy as np
from tqdm import tqdm

from tf_dynidx.cli import encodings as random_encodings
from tf_dynidx.cli.bench import measure, sampler
from tf_dynidx.cli.bench.measure import K, Row

ROWS = 1_000_000
DRIFT_ROWS = 100_000
DIM = 64
MOVED_SHARE = 0.01
STEP = 0.1  # length of the step that moved rows take
ROUNDS = 5
DRIFT_ROUNDS = 50
DRIFT_COSINE = 0.7  # of a row with its start, after all rounds
BETAS = (20.0, 50.0)

# From a target to a query, after the drift: near enough to belong to it, and far enough for the softmax
# to be no single target (an RMSE of iid draws of .3 at beta 20).
_QUERY_STEP = 1.2

TITLES = {
    "upkeep": f"Upkeep: {MOVED_SHARE:.0%} of the rows moved, then repaired; dimension {DIM}, medians "
    f"of {ROUNDS} rounds, and their share of the time of a build",
    "drift": f"Drift: every row moves in each of {DRIFT_ROUNDS} rounds of update and repair; then the "
    "index that followed against one that is built on the same rows",
}


def upkeep(settings):
    """Yields the rows of the tables upkeep and drift."""
    # One after the other: what the first holds is freed before the second begins.
    yield from _one_percent(settings)
    yield from drift(settings)


def _one_percent(settings):
    """Yields the rows of the table upkeep."""
    number = min(ROWS, settings.max_rows)
    data = random_encodings.clustered(number, DIM, 1, settings.seed, progress=settings.progress)
    targets = data.targets
    index = measure.DynamicIndex(DIM, number, seed=settings.seed)

    def build():
        index.build(targets, progress=settings.progress)

    # The first build compiles too, which the rounds after it do not.
    first_build = measure.seconds(build)
    index.reset()
    again = measure.seconds(build)
    yield Row("upkeep", _times("first build, compiling", number, number, first_build, again))
    yield Row("upkeep", _times("build", number, number, again, again))

    rng = np.random.default_rng([settings.seed, 5])
    updates, repairs = [], []
    bar = tqdm(range(ROUNDS + 1), desc="upkeep", unit="round", disable=not settings.progress)
    for round_number in bar:
        rows, fresh = step(targets, rng, max(1, round(MOVED_SHARE * number)), STEP)
        taken = (
            measure.seconds(lambda rows=rows, fresh=fresh: index.update(rows, fresh)),
            measure.seconds(index.repair),
        )
        if round_number:
            updates.append(taken[0])
            repairs.append(taken[1])
    both = np.add(updates, repairs)
    for name, times in {"update": updates, "repair": repairs, "update and repair": both}.items():
        yield Row("upkeep", _times(name, number, len(rows), np.median(times), again))


def _times(name, number, rows, seconds, build):
    return {
        "work": name,
        "targets": number,
        "rows": rows,
        "seconds": seconds,
        "share_of_build": seconds / build,
    }


def step(targets, rng, number, length):
    """Moves some rows by a random step, in place.

    Args:
        targets: float32 [targets, dim], overwritten.
        rng: NumPy random generator.
        number: int, how many rows move.
        length: float, of the step.

    Returns:
        (rows int32 [number], their new vectors float32 [number, dim]).
    """
    rows = rng.choice(len(targets), number, replace=False).astype(np.int32)
    fresh = random_encodings.moved(targets[rows], rng, length).astype(targets.dtype)
    targets[rows] = fresh
    return rows, fresh


def drift(settings):
    """Yields the rows of the table drift."""
    number = min(DRIFT_ROWS, settings.max_rows)
    data = random_encodings.clustered(number, DIM, 1, settings.seed)
    start, targets = data.targets, data.targets.copy()
    index = measure.built(targets, settings.seed, settings.progress)
    rng = np.random.default_rng([settings.seed, 6])
    # A step of length s leaves a cosine of 1 / sqrt(1 + s^2), and those of all rounds multiply.
    length = (DRIFT_COSINE ** (-2.0 / DRIFT_ROUNDS) - 1.0) ** 0.5
    times = []
    for _ in tqdm(range(DRIFT_ROUNDS), desc="drift", unit="round", disable=not settings.progress):
        rows, fresh = step(targets, rng, number, length)

        def follow(rows=rows, fresh=fresh):
            index.update(rows, fresh)
            index.repair()

        times.append(measure.seconds(follow))
    cosine = float(np.mean(np.sum(start * targets, axis=1)))
    fresh_index = measure.DynamicIndex(DIM, number, seed=settings.seed)
    # Timed the second time: the first compiles, which most rounds do not.
    fresh_index.build(targets)
    fresh_index.reset()
    build = measure.seconds(lambda: fresh_index.build(targets))
    yield Row("drift", _compared("cosine to the start", cosine, None))
    yield Row("drift", _compared("seconds of a round, of a build", np.median(times), build))

    # Queries near targets as they are now.
    near = targets[rng.integers(number, size=4 * measure.BATCH)]
    queries = random_encodings.moved(near, rng, _QUERY_STEP)
    both = (index, fresh_index)
    for beta in BETAS:
        yield Row("drift", _sampler_rmse(both, queries[: sampler.QUERIES], targets, beta, settings))
    costs = [float(each.sample_cost(sampler.SAMPLES)) for each in both]
    yield Row("drift", _compared("sampler cost", *costs))
    kth = measure.kth_scores(queries, targets)
    recalls = [
        measure.recall(measure.in_batches(measure.search_rows(each), queries), queries, targets, kth)
        for each in both
    ]
    yield Row("drift", _compared(f"recall@{K}, default budget", *recalls))
    yield Row("drift", _compared("search cost", *(float(each.search_cost(K)) for each in both)))


def _sampler_rmse(both, queries, targets, beta, settings):
    sets = sampler.SAMPLES, sampler.REPEATS
    exact = sampler.softmax(queries, targets, beta, *sets, settings.seed)
    progress, desc = settings.progress, f"drift, beta {beta:g}"
    rmse = []
    for index in both:
        errors, _ = sampler.index_errors(
            index, queries, targets, beta, exact, *sets, progress=progress, desc=desc
        )
        rmse.append(np.median(errors.rmse))
    return _compared(f"sampler RMSE, beta {beta:g}", *rmse, np.median(exact.iid.rmse))


def _compared(name, followed, fresh, iid=None):
    ratio = followed / fresh if fresh else None
    return {"figure": name, "followed": followed, "fresh": fresh, "ratio": ratio, "iid": iid}
