"""The tables of a comparison: their cells, and as text."""

from tf_dynidx.cli.compare.summary import CLOSED
from tf_dynidx.cli.tables import aligned

METRICS = ("recall@1", "recall@10", "recall@20", "recall@64", "recall@100", "ndcg@20", "mrr")
_NONE = "–"


def text(found):
    """All tables of a comparison as text.

    Args:
        found: dict, what `summary` returned.
    """
    parts = []
    for title, lines in tables(found):
        parts.append(f"{title}\n{aligned(lines, [False] + [True] * (len(lines[0]) - 1))}")
    parts += failures(found)
    return "\n\n".join(parts)


def tables(found):
    """The tables of a comparison: list of (title, lines), lines lists of str, the first the heads."""
    methods = found["methods"]
    seeds = len(found["plan"]["seeds"])
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    quality = [["method", *METRICS]]
    cost = [["method", "steps", "seconds", "mining", "encoder calls", "full encodes"]]
    cost[0] += ["peak memory", "miner's own", "accelerator"]
    for row in methods:
        metrics = row["metrics"] or {}
        quality.append([row["method"], *(_metric(metrics.get(name)) for name in METRICS)])
        memory = row["memory"] or {}
        cost.append(
            [
                row["method"],
                _number(row["steps"], "{:,.0f}", spread=False),
                _number(row["seconds"], "{:,.1f}"),
                _number(row["share_mining"], "{:.0%}", spread=False),
                _number(row["encoder_calls"], "{:,.0f}", spread=False),
                _number(row["full_encodes"], "{:,.0f}", spread=False),
                *(_bytes(memory.get(name)) for name in ("process_peak", "miner", "accelerator_peak")),
            ]
        )
    found_tables = [
        (f"All test queries against all targets, {over}", quality),
        ("What it took (memory: the most of all seeds)", cost),
    ]
    if any(row["closed"] for row in methods):
        lines = [["method", *CLOSED]]
        for row in methods:
            closed = row["closed"] or {}
            lines.append([row["method"], *(_share(closed.get(name)) for name in CLOSED)])
        title = (
            f"Share of the gain of exact over in-batch that a method has ({_NONE}: there is no gain)"
        )
        found_tables.append((title, lines))
    return found_tables


def failures(found):
    """One line for each run that failed: list of str."""
    return [
        f"failed: {row['method']}, seed {failure['seed']}: {failure['error']}"
        for row in found["methods"]
        for failure in row["failed"]
    ]


def _metric(value):
    return _number(value, "{:.3f}")


def _number(value, form, spread=True):
    """A mean, and its spread if that is wanted and there is one."""
    if value is None:
        return _NONE
    mean = form.format(value["mean"])
    if not spread or value["spread"] is None:
        return mean
    return f"{mean} ±{form.format(value['spread'])}"


def _share(value):
    return _NONE if value is None else f"{value:.2f}"


def _bytes(value):
    """Bytes in three digits or so."""
    if value is None:
        return _NONE
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
