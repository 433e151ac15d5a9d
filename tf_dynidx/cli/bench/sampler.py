"""Sampler quality: how far the mean of a query's draws is from the softmax's, against iid draws."""

from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tf_dynidx.cli.bench import measure
from tf_dynidx.cli.bench.measure import Row

BETAS = (20.0, 50.0, 100.0)
SAMPLES = 64
REPEATS = 400
QUERIES = 100

TITLES = {
    "sampler": f"Sampler: medians over queries, {SAMPLES} draws a set, {REPEATS} sets a query. Bias "
    "of the mean of the draws and RMSE of one set, relative to the distance of the exact E[y] from the "
    "mean target; iid: the same number of draws from the exact softmax; cost in dot products a query"
}


class Errors(NamedTuple):
    """Errors of the means of sets of draws, relative to the distance of E[y] from the mean target.

    Attributes:
        bias: float [queries], norm of (mean over the sets - E[y]). With R sets, noise alone gives about
            rmse / sqrt(R).
        rmse: float [queries], root mean square over the sets of norm(mean of a set - E[y]).
    """

    bias: np.ndarray
    rmse: np.ndarray


class Softmax(NamedTuple):
    """What the exact softmax over all targets says, by enumeration, for each query.

    Attributes:
        mean: float64 [queries, dim], E[y].
        log_partition: float64 [queries].
        distance: float64 [queries], of E[y] from the mean target.
        iid: `Errors` of independent draws from it.
    """

    mean: np.ndarray
    log_partition: np.ndarray
    distance: np.ndarray
    iid: Errors


def sampler(all_encodings, settings):
    """Yields a row for each encodings and beta."""
    for encodings in all_encodings:
        index = measure.built(encodings.targets, settings.seed, settings.progress)
        queries = some_queries(encodings.queries, QUERIES, settings.seed)
        for beta in BETAS:
            exact = softmax(queries, encodings.targets, beta, SAMPLES, REPEATS, settings.seed)
            errors, log_partition = index_errors(
                *(index, queries, encodings.targets, beta, exact, SAMPLES, REPEATS),
                progress=settings.progress,
                desc=f"sampler, {encodings.name}, beta {beta:g}",
            )
            bias, rmse = np.median(errors.bias), np.median(errors.rmse)
            iid_bias, iid_rmse = np.median(exact.iid.bias), np.median(exact.iid.rmse)
            cost = index.sample_cost(SAMPLES)
            values = {
                "encodings": encodings.name,
                "targets": len(encodings.targets),
                "queries": len(queries),
                "beta": beta,
                "bias": bias,
                "iid_bias": iid_bias,
                "bias_difference": bias - iid_bias,
                "rmse": rmse,
                "iid_rmse": iid_rmse,
                "rmse_ratio": rmse / iid_rmse,
                "log_partition_rms_error": np.median(log_partition),
                "cost": float(cost),
                "cost_share": cost / len(encodings.targets),
            }
            yield Row("sampler", values)


def some_queries(queries, number, seed):
    """As many of the queries, picked at random."""
    return queries[np.random.default_rng([seed, 3]).permutation(len(queries))[:number]]


def softmax(queries, targets, beta, num_samples, repeats, seed=0):
    """What the exact softmax says of the queries, and the errors of independent draws from it.

    Args:
        queries: float32 [queries, dim].
        targets: float32 [targets, dim].
        beta: float, inverse temperature.
        num_samples: int, draws in a set.
        repeats: int, sets of draws.
        seed: int, of the independent draws.

    Returns:
        `Softmax`.
    """
    rng = np.random.default_rng([seed, 4])
    centre = targets.mean(axis=0, dtype=np.float64)
    rows = []
    for query in queries:
        logits = beta * (targets @ query).astype(np.float64)
        highest = logits.max()
        weights = np.exp(logits - highest)
        cumulative = np.cumsum(weights)
        mean = (weights / cumulative[-1]).astype(np.float32) @ targets
        distance = np.linalg.norm(mean - centre)
        lots = rng.uniform(high=cumulative[-1], size=[repeats, num_samples])
        # The last sum may be rounded to less than a lot drawn below it.
        drawn = np.minimum(np.searchsorted(cumulative, lots, side="right"), len(targets) - 1)
        errors = set_errors(targets[drawn].mean(axis=1)[:, None], mean[None], distance)
        log_partition = highest + np.log(cumulative[-1])
        rows.append((mean, log_partition, distance, errors.bias[0], errors.rmse[0]))
    means, log_partitions, distances, bias, rmse = (
        np.array(column, np.float64) for column in zip(*rows, strict=True)
    )
    return Softmax(means, log_partitions, distances, Errors(bias, rmse))


def index_errors(index, queries, targets, beta, exact, num_samples, repeats, progress=False, desc=None):
    """Errors of an index's draws.

    Args:
        index: a `DynamicIndex` of the targets.
        queries, targets, beta, num_samples, repeats: as `softmax` was given them.
        exact: `Softmax` of the same.
        progress, desc: whether to show a bar, and what it says.

    Returns:
        (`Errors`, float [queries]): of the draws; root mean square error of log_partition.
    """

    def draw(batch):
        drawn = index.sample(batch, num_samples, beta)
        return drawn.ids.numpy(), drawn.log_partition.numpy()

    return draw_errors(draw, queries, targets, exact, repeats, progress, desc)


def draw_errors(draw, queries, targets, exact, repeats, progress=False, desc=None):
    """Errors of the draws of any sampler, each query asked `repeats` times.

    Args:
        draw: function from float32 [measure.BATCH, dim] to (rows int [batch, samples], log partition
            float [batch]).
        queries, targets, exact, repeats: see `index_errors`.

    Returns:
        As `index_errors`.
    """
    means, log_partitions = [], []
    # Query after query, then all over again: calls of one size, whatever the number of queries.
    tiled = np.tile(queries, [repeats, 1])
    for batch in tqdm(measure.blocks(tiled), desc=desc, unit="call", disable=not progress):
        rows, log_partition = draw(batch)
        means.append(targets[rows].mean(axis=1))
        log_partitions.append(log_partition)
    shape = [repeats, len(queries)]
    means = np.concatenate(means)[: len(tiled)].reshape([*shape, -1])
    log_partitions = np.concatenate(log_partitions)[: len(tiled)].reshape(shape)
    off = np.sqrt(np.mean(np.square(log_partitions - exact.log_partition), axis=0))
    return set_errors(means, exact.mean, exact.distance), off


def set_errors(means, expected, distance):
    """Bias and RMSE of the means of sets.

    Args:
        means: float [sets, queries, dim].
        expected: float [queries, dim], E[y].
        distance: float [queries], what both are divided by.

    Returns:
        `Errors`.
    """
    off = means.astype(np.float64) - expected
    bias = np.linalg.norm(off.mean(axis=0), axis=-1)
    rmse = np.sqrt(np.square(off).sum(axis=-1).mean(axis=0))
    return Errors(bias / distance, rmse / distance)
