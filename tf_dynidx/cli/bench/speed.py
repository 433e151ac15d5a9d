"""Speed: drawing through the index against drawing by enumeration; and how its time grows."""

import numpy as np
import tensorflow as tf

from tf_dynidx.cli import encodings as random_encodings
from tf_dynidx.cli.bench import measure
from tf_dynidx.cli.bench.measure import BATCH, Row

ROWS = 1_000_000
DIM = 128
SAMPLES = 64
BETA = 20.0
ROUNDS = 7
SMALLEST = 10_000  # of the growth
MAX_FLOAT32_ROWS = 1_000_000  # beyond, rows are float16

_BLOCK = 32_768  # targets that are scored at a time: their scores are what takes memory

_TASK = f"{BATCH} queries x {SAMPLES} draws, dimension {DIM}, beta {BETA:g}"
TITLES = {
    "speed": f"Speed: {_TASK}; medians of {ROUNDS} rounds in turn. Times are of this machine now; the "
    "ratios are what to go by",
    "growth": f"Growth: {_TASK}; each size in turn with the smallest, whose median the ratio is to",
    "growth_slope": "Growth: slope of log time over log targets",
}


def speed(settings):
    """Yields a row for each way to draw, then one for each size, then the slopes."""
    # One after the other: what the first holds is freed before the second begins.
    yield from _against_enumeration(settings)
    yield from growth(settings)


def _against_enumeration(settings):
    """Yields a row for each way to draw."""
    number = min(ROWS, settings.max_rows)
    data = _data(number, settings)
    queries = tf.constant(data.queries)
    targets = tf.constant(data.targets)
    index = measure.built(data.targets, settings.seed, settings.progress)
    # Once on the tensor, a second copy in NumPy is of no use.
    del data
    noisy, plain = exact_top(targets, SAMPLES, noise=True), exact_top(targets, SAMPLES, noise=False)
    beta = tf.constant(BETA)
    times = measure.alternating(
        {
            "sample()": lambda: index.sample(queries, SAMPLES, BETA).ids.numpy(),
            "matmul + Gumbel noise + top_k": lambda: noisy(queries, beta)[1].numpy(),
            "matmul + top_k, no draw": lambda: plain(queries, beta)[1].numpy(),
        },
        ROUNDS,
        settings.progress,
        desc=f"speed at {number:,} targets",
    )
    for name, taken in times.items():
        ratio = taken / times["sample()"]
        yield Row("speed", {"side": name, "targets": number, "seconds": taken, "ratio": ratio})


def growth(settings):
    """Yields a row for each size, a tenth of the next, and then the slopes."""
    numbers = sizes(settings.max_rows)
    smallest = ratios = None
    for number in numbers:
        data = _data(number, settings)
        index = measure.built(data.targets, settings.seed, settings.progress)
        queries, dtype = tf.constant(data.queries), data.targets.dtype.name
        del data

        def draw(index=index, queries=queries):
            return index.sample(queries, SAMPLES, BETA).ids.numpy()

        sides = {"this": draw} if smallest is None else {"smallest": smallest, "this": draw}
        times = measure.alternating(
            sides, ROUNDS, settings.progress, desc=f"growth, {number:,} targets"
        )
        if smallest is None:
            smallest, ratios = draw, []
        ratios.append(times["this"] / times.get("smallest", times["this"]))
        values = {"targets": number, "rows": dtype, "seconds": times["this"], "ratio": ratios[-1]}
        values["cost"] = float(index.sample_cost(SAMPLES))
        yield Row("growth", values)
    x, y = np.log(numbers), np.log(ratios)
    yield Row(
        "growth_slope",
        {
            "targets_from": numbers[0],
            "targets_to": numbers[-1],
            "least_squares": np.polyfit(x, y, 1)[0],
            "end_to_end": (y[-1] - y[0]) / (x[-1] - x[0]),
        },
    )


def sizes(largest):
    """Numbers of targets, tenfold each, up to the largest: from `SMALLEST`, and two at least."""
    numbers = [largest]
    while numbers[0] // 10 >= SMALLEST or len(numbers) < 2:
        numbers.insert(0, max(numbers[0] // 10, random_encodings.MIN_TARGETS))
    return numbers


def exact_top(targets, k, noise):
    """The exact way: all targets scored, with Gumbel noise for draws from the softmax, the k best kept.

    Args:
        targets: float32 tensor [targets, dim], k at least.
        k: int.
        noise: bool. With it, the k best are draws without replacement from the softmax.

    Returns:
        function from queries [batch, dim] and beta to (scores [batch, k], rows [batch, k]). It scores a
        block of targets at a time and merges the best, so that its memory does not grow with them.
    """
    number = int(targets.shape[0])
    # Blocks of nearly one size: the last one too has k targets or more.
    parts = -(-number // _BLOCK)
    size = -(-number // parts)

    @tf.function(autograph=False)
    def top(queries, beta):
        batch = tf.shape(queries)[0]

        def score(start, best, rows):
            logits = beta * tf.matmul(queries, targets[start : start + size], transpose_b=True)
            if noise:
                tiny = np.finfo(np.float32).tiny
                lots = tf.random.uniform(tf.shape(logits), minval=tiny)
                logits -= tf.math.log(-tf.math.log(lots))
            scores, places = tf.math.top_k(logits, k)
            best, order = tf.math.top_k(tf.concat([best, scores], axis=1), k)
            rows = tf.gather(tf.concat([rows, start + places], axis=1), order, batch_dims=1)
            return start + size, best, rows

        nothing = tf.fill([batch, k], -np.inf), tf.fill([batch, k], -1)
        free = tf.TensorShape([None, k])
        return tf.while_loop(
            lambda start, best, rows: start < number,
            score,
            (tf.constant(0), *nothing),
            shape_invariants=(tf.TensorShape([]), free, free),
            parallel_iterations=1,
        )[1:]

    return top


def _data(number, settings):
    dtype = "float32" if number <= MAX_FLOAT32_ROWS else "float16"
    return random_encodings.clustered(
        number, DIM, BATCH, settings.seed, dtype, progress=settings.progress
    )
