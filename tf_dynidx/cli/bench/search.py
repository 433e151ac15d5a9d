"""Search quality: recall of the exact best against cost, beside Faiss IVF-Flat at the same cost."""

import numpy as np
from tqdm import tqdm

from tf_dynidx.cli.bench import measure, rivals
from tf_dynidx.cli.bench.measure import K, Note, Row

COST_SHARES = (0.01, 0.02, 0.03, 0.05, 0.09, 0.17, 0.20)
LISTS = (1, 4, 8, 16)  # numbers of lists of IVF-Flat, times sqrt(N)
USUAL_LISTS = 4  # what its documentation starts with
QUERIES = 1024

TITLES = {
    "search": f"Search: recall@{K} at a cost of at most so many dot products a query; IVF-Flat of "
    "Faiss at the same cost (lists + rows scanned), with its best number of lists and with "
    f"{USUAL_LISTS} sqrt(N)"
}


def search(all_encodings, settings):
    """Yields a row for each encodings and cost."""
    faiss = rivals.load("faiss")
    if faiss is None:
        yield Note(f"IVF-Flat was left out, as Faiss is not installed: {rivals.HOW_TO_INSTALL}")
    for encodings in all_encodings:
        targets, queries = encodings.targets, encodings.queries[:QUERIES]
        kth = measure.kth_scores(queries, targets)
        index = measure.built(targets, settings.seed, settings.progress)
        inverted = _inverted(faiss, targets, settings) if faiss else {}
        curves = {lists: rivals.ivf_costs(ivf, queries) for lists, ivf in inverted.items()}
        desc = f"search, {encodings.name}"
        for share in tqdm(COST_SHARES, desc=desc, unit="cost", disable=not settings.progress):
            limit = share * len(targets)
            values = {
                "encodings": encodings.name,
                "targets": len(targets),
                "queries": len(queries),
                "cost_share": share,
                **_own(index, queries, targets, kth, limit),
            }
            if faiss:
                values |= _rival(inverted, curves, queries, targets, kth, limit)
            yield Row("search", values)


def budget_within(index, k, limit):
    """The largest budget of a search whose cost is at most `limit` dot products; None if none is."""
    low, high = k, index.size + 1
    if index.search_cost(k, low) > limit:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if index.search_cost(k, middle) <= limit:
            low = middle
        else:
            high = middle
    return low


def _own(index, queries, targets, kth, limit):
    budget = budget_within(index, K, limit)
    if budget is None:
        return {"cost": None, "budget": None, "recall": None}
    rows = measure.in_batches(measure.search_rows(index, budget=budget), queries)
    return {
        "cost": float(index.search_cost(K, budget)),
        "budget": budget,
        "recall": measure.recall(rows, queries, targets, kth),
    }


def _rival(inverted, curves, queries, targets, kth, limit):
    best, usual = (None, None), None
    for lists, ivf in inverted.items():
        probes = int(np.searchsorted(curves[lists], limit, side="right"))
        if probes == 0:
            continue
        rows = rivals.ivf_search(ivf, probes, K)(queries)
        found = measure.recall(rows, queries, targets, kth)
        if lists == usual_lists(len(targets)):
            usual = found
        if best[0] is None or found > best[0]:
            best = found, lists
    return {"ivf_best": best[0], "ivf_best_lists": best[1], f"ivf_{USUAL_LISTS}_sqrt": usual}


def _inverted(faiss, targets, settings):
    """An IVF-Flat for each number of lists that the targets are enough for."""
    numbers = {round(times * len(targets) ** 0.5) for times in LISTS}
    numbers = sorted(number for number in numbers if number <= len(targets))
    bar = tqdm(numbers, desc="Faiss IVF-Flat", unit="index", disable=not settings.progress)
    return {number: rivals.ivf_flat(faiss, targets, number, settings.seed) for number in bar}


def usual_lists(number):
    """How many lists IVF-Flat is given for so many targets, unless it is tuned."""
    return round(USUAL_LISTS * number**0.5)
