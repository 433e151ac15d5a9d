"""Peers: the index beside Faiss IVF-Flat and ScaNN: recall, speed, build, following a drift."""

import numpy as np

from tf_dynidx.cli import encodings as random_encodings
from tf_dynidx.cli.bench import measure, rivals
from tf_dynidx.cli.bench.measure import BATCH, K, Note, Row
from tf_dynidx.cli.bench.search import budget_within, usual_lists

ROWS = 1_000_000
DIM = 64
COST_SHARES = (0.005, 0.01, 0.02, 0.05, 0.10)  # of the index's searches
PROBE_SHARES = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.10)  # of lists (Faiss) and leaves (ScaNN)
ROUNDS = 15
STEP = 0.1  # length of the step that every row takes
LIBRARIES = ("faiss", "scann")

TITLES = {
    "frontier": f"Peers, search: {BATCH} queries a call, the best {K}, dimension {DIM}; medians of "
    f"{ROUNDS} rounds in turn, each library on all cores",
    "following": "Peers, upkeep: seconds to build, and to follow when every row has moved; recall "
    "at the middle of the settings above, before and after. The index's build compiles as well",
}


def check():
    """Refuses to run without a peer.

    Raises:
        ValueError: neither library can be imported.
    """
    if not any(rivals.load(name) for name in LIBRARIES):
        raise ValueError(
            "--parts peers needs Faiss or ScaNN. Received: neither can be imported. "
            f"Install them: {rivals.HOW_TO_INSTALL}"
        )


def peers(settings):
    """Yields the rows of the tables frontier and following."""
    number = min(ROWS, settings.max_rows)
    data = random_encodings.clustered(number, DIM, BATCH, settings.seed, progress=settings.progress)
    targets, queries = data.targets, data.queries
    libraries = [_Own(settings)]
    for name, library in zip(LIBRARIES, (_Faiss, _ScaNN), strict=True):
        module = rivals.load(name)
        if module is None:
            yield Note(f"{name} was left out, as it cannot be imported: {rivals.HOW_TO_INSTALL}")
        else:
            libraries.append(library(module, settings.seed))

    builds = [measure.seconds(lambda library=library: library.build(targets)) for library in libraries]
    kth = measure.kth_scores(queries, targets)
    searches = {
        (library.name, setting): search
        for library in libraries
        for setting, search in library.searches().items()
    }
    times = measure.alternating(
        {key: lambda search=search: search(queries) for key, search in searches.items()},
        ROUNDS,
        settings.progress,
        desc="peers, search",
    )
    recalls = {}
    for key, search in searches.items():
        recalls[key] = measure.recall(search(queries), queries, targets, kth)
        values = {"library": key[0], "setting": key[1], "targets": number, f"recall@{K}": recalls[key]}
        yield Row("frontier", {**values, "queries_per_second": len(queries) / times[key]})

    rng = np.random.default_rng([settings.seed, 7])
    after = random_encodings.moved(targets, rng, STEP)
    kth = measure.kth_scores(queries, after)
    for library, build in zip(libraries, builds, strict=True):
        settings_of = [setting for name, setting in searches if name == library.name]
        middle = settings_of[len(settings_of) // 2]
        for way, follow in library.follow(after):
            taken = measure.seconds(follow)
            rows = library.searches()[middle](queries)
            values = {"library": library.name, "way": way, "targets": number, "build_seconds": build}
            values |= {"follow_seconds": taken, "share_of_build": taken / build, "setting": middle}
            values["recall_before"] = recalls[library.name, middle]
            values["recall_after"] = measure.recall(rows, queries, after, kth)
            yield Row("following", values)


class _Own:
    """The dynamic index."""

    name = "tf_dynidx"

    def __init__(self, settings):
        self._settings = settings

    def build(self, targets):
        self._targets = targets
        self._index = measure.built(targets, self._settings.seed, self._settings.progress)

    def searches(self):
        limits = {share: share * self._index.size for share in COST_SHARES}
        budgets = [budget_within(self._index, K, limit) for limit in limits.values()]
        budgets = sorted({budget for budget in budgets if budget}) or [K]
        return {f"budget {b}": measure.search_rows(self._index, budget=b) for b in budgets}

    def follow(self, targets):
        def update_and_repair(targets):
            self._index.update(np.arange(len(targets), dtype=np.int32), targets)
            self._index.repair()

        # With what it holds already: a first call compiles.
        update_and_repair(self._targets)
        yield "update and repair", lambda: update_and_repair(targets)


class _Faiss:
    """IVF-Flat, which knows no updates: rows are taken out and put in again."""

    name = "Faiss IVF-Flat"

    def __init__(self, faiss, seed):
        self._faiss, self._seed = faiss, seed

    def build(self, targets):
        lists = usual_lists(len(targets))
        self._index = rivals.ivf_flat(self._faiss, targets, lists, self._seed)

    def searches(self):
        numbers = _probes(self._index.nlist)
        return {f"{n} probes": rivals.ivf_search(self._index, n, K) for n in numbers}

    def follow(self, targets):
        def add_again():
            self._index.reset()
            self._index.add(targets)

        yield "added again to the same lists", add_again
        yield "trained again", lambda: self.build(targets)


class _ScaNN:
    """ScaNN's tree with hashed scores, which is built anew when rows have moved."""

    name = "ScaNN"

    def __init__(self, scann, seed):
        self._scann = scann

    def build(self, targets):
        self._leaves = usual_lists(len(targets))
        self._searcher = rivals.scann_tree(self._scann, targets, K, self._leaves)

    def searches(self):
        numbers = _probes(self._leaves)
        return {f"{n} leaves": rivals.scann_search(self._searcher, n, K) for n in numbers}

    def follow(self, targets):
        yield "built again", lambda: self.build(targets)


def _probes(lists):
    return sorted({max(1, round(share * lists)) for share in PROBE_SHARES})
