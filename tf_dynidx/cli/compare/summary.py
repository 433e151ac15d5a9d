"""What the runs of a comparison say together: means and spreads over seeds."""

import numpy as np

CLOSED = ("recall@10", "recall@64", "mrr")
_COSTS = ("steps", "seconds", "encoder_calls", "full_encodes")
_MEMORY = ("process_peak", "miner", "accelerator_peak")
_FIGURES = (*_COSTS, "share_mining", "metrics", "memory")


def summary(plan, outcomes):
    """The report of a comparison.

    Args:
        plan: `Plan`.
        outcomes: for each of `plan.runs()` the report of `train`, or a dict with "error".

    Returns:
        dict of what JSON can write:
        plan: what was compared.
        methods: for each a dict: method, miner, own, num_runs, failed (of seed and error), and, None
            where no run came to an end: steps, seconds, share_mining, encoder_calls, full_encodes and
            each of `metrics`, a dict of mean and spread; `memory`, the most of all runs in bytes;
            `closed`, see `share_closed`; None but after equal steps.
        runs: the reports, with method and seed.

        A spread is the standard deviation over seeds (with n - 1), None for fewer than two.
    """
    runs = [
        {"method": run.method.label, "seed": run.settings.seed, **outcome}
        for run, outcome in zip(plan.runs(), outcomes, strict=True)
    ]
    methods = []
    for method in plan.methods:
        mine = [run for run in runs if run["method"] == method.label]
        done = [run for run in mine if "error" not in run]
        failed = [{name: run[name] for name in ("seed", "error")} for run in mine if "error" in run]
        methods.append(
            {
                "method": method.label,
                "miner": method.miner,
                "own": method.own,
                "num_runs": len(done),
                "failed": failed,
                **(_figures(done) if done else dict.fromkeys(_FIGURES)),
            }
        )
    settings = plan.common()
    # In as many seconds or encoder calls as the others what looks at all targets is no oracle.
    equal_steps = settings["seconds"] is None and settings["encoder_calls"] is None
    for row in methods:
        row["closed"] = share_closed(row, methods) if equal_steps else None
    return {
        "plan": {
            "data": {
                name: {"path": str(plan.paths[name]), "number": plan.numbers[name]}
                for name in plan.paths
            },
            "settings": settings,
            "seeds": list(plan.seeds),
        },
        "methods": methods,
        "runs": runs,
    }


def share_closed(row, methods):
    """How much of the oracle's gain over in-batch training a method has.

    (metric - in-batch) / (exact - in-batch), of means over seeds; in-batch and exact are the first
    methods with those miners.

    Args:
        row: of `summary`'s methods.
        methods: all of them.

    Returns:
        dict from metric to float, None where exact gains nothing; None if one of the two is not there.
    """

    def first(miner):
        return next((m["metrics"] for m in methods if m["miner"] == miner and m["metrics"]), None)

    low, high, own = first("in-batch"), first("exact"), row["metrics"]
    if not (low and high and own):
        return None
    closed = {}
    for name in CLOSED:
        gain = high[name]["mean"] - low[name]["mean"]
        closed[name] = (own[name]["mean"] - low[name]["mean"]) / gain if gain > 0 else None
    return closed


def _figures(done):
    """Costs, metrics and memory of the runs of one method."""
    costs = {name: [run[name] for run in done] for name in _COSTS}
    costs["share_mining"] = [
        run["seconds_mining"] / run["seconds"] if run["seconds"] else 0.0 for run in done
    ]
    memory = {}
    for name in _MEMORY:
        known = [run["memory"][name] for run in done if run["memory"][name] is not None]
        memory[name] = max(known, default=None)
    return {
        **{name: _spread(values) for name, values in costs.items()},
        "metrics": {
            name: _spread([run["metrics"][name] for run in done]) for name in done[0]["metrics"]
        },
        "memory": memory,
    }


def _spread(values):
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "spread": spread}
