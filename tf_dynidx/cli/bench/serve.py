"""`tf-dynidx bench serve`: exports of each kind side by side, and the development server under load."""

import dataclasses
import tempfile
import threading
from pathlib import Path

import numpy as np
import tensorflow as tf

from tf_dynidx.cli import encodings as some_encodings
from tf_dynidx.cli.bench import clients, measure
from tf_dynidx.cli.bench.measure import K, Row
from tf_dynidx.cli.bench.tables import run_parts
from tf_dynidx.serving import export_retrieval
from tf_dynidx.serving.server import Server

DIM = 64
BATCHES = (1, 32)
QUERIES = 512
ROUNDS = 7
CALLS = {1: 24, 32: 4}  # of one timing
# Index, row dtype and rows that a tree scores for a query, as a share of the targets; None: default.
EXPORTS = (
    ("exact", "float32", None),
    ("exact", "float16", None),
    ("exact", "int8", None),
    ("tree", "float32", 0.0015),
    ("tree", "float32", 0.002),
    ("tree", "float32", 0.003),
    ("tree", "float32", 0.005),
    ("tree", "float32", 0.01),
    ("tree", "float32", None),
    ("tree", "float32", 0.05),
    ("tree", "float16", None),
    ("tree", "int8", None),
)
CLIENTS = 32
SERVED_ROWS = 20_000  # of the export that is served under load: it is the server that is measured

TITLES = {
    "throughput": f"Exports, loaded and asked in this process for {K} targets: recall@{K} of the exact "
    f"best, size on disk, queries a second at each batch size, and as a multiple of exact float32 "
    f"(medians of {ROUNDS} rounds, in turns)",
    "load": f"The development server, {CLIENTS} clients on this machine, one query a request, while a "
    "new version is put in place: latencies in milliseconds",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the benchmark can be told.

    Attributes:
        rows: random targets of the exports.
        requests: to the server.
        encodings: archive of real encodings, or None.
        seed: seeds data.
        report: file for the figures, or None.
        progress: whether to show bars.
    """

    rows: int = 1_000_000
    requests: int = 20_000
    encodings: str | None = None
    seed: int = 0
    report: str | None = None
    progress: bool = True


def bench_serve(settings, real):
    """Runs the benchmark, prints its tables and writes the report.

    Args:
        settings: `Settings`.
        real: `Encodings`, or None.

    Returns:
        int, the exit status, as `run_parts`.
    """
    return run_parts(TITLES, [load(settings), throughput(settings, real)], settings)


def throughput(settings, real):
    """Yields a row for each export of random targets, and of real ones where there are some."""
    random = some_encodings.clustered(
        settings.rows, DIM, QUERIES, settings.seed, progress=settings.progress
    )
    for encodings in (random, real):
        if encodings is not None:
            yield from _throughput(encodings, settings)


def _throughput(encodings, settings):
    targets, queries = encodings.targets, encodings.queries[:QUERIES]
    kth = measure.kth_scores(queries, targets)
    with tempfile.TemporaryDirectory() as folder:
        found, sides = [], {batch: {} for batch in BATCHES}
        for number, (index, row_dtype, share) in enumerate(EXPORTS):
            budget = None if share is None else round(share * len(targets))
            path = _export(
                Path(folder, str(number)),
                targets,
                np.arange(len(targets)),
                index=index,
                row_dtype=row_dtype,
                budget=budget,
            )
            retrieve = tf.saved_model.load(path).signatures["retrieve"]
            rows = measure.in_batches(_rows(retrieve), queries, 32)
            values = {
                "encodings": encodings.name,
                "targets": len(targets),
                "index": index,
                "rows": row_dtype,
                "budget": budget,
                "recall": measure.recall(rows, queries, targets, kth),
                "MB": sum(each.stat().st_size for each in Path(path).rglob("*")) / 1e6,
            }
            found.append(values)
            for batch in BATCHES:
                sides[batch][number] = _timed(retrieve, queries, batch)
        for batch in BATCHES:
            desc = f"throughput, {encodings.name}, batch {batch}"
            taken = measure.alternating(sides[batch], ROUNDS, settings.progress, desc)
            for number, values in enumerate(found):
                values[f"per_s_{batch}"] = CALLS[batch] * batch / taken[number]
                values[f"times_exact_{batch}"] = taken[0] / taken[number]
    for values in found:
        yield Row("throughput", values)


def _rows(retrieve):
    return lambda queries: retrieve(query=tf.constant(queries))["identifiers"].numpy()


def _timed(retrieve, queries, batch):
    inputs = [tf.constant(block) for block in measure.blocks(queries, batch)[: CALLS[batch]]]

    def call():
        for each in inputs:
            retrieve(query=each)["identifiers"].numpy()

    return call


def load(settings):
    """Yields, for each protocol, what clients saw: before, while and after a new version came."""
    random = some_encodings.clustered(SERVED_ROWS, DIM, QUERIES, settings.seed)
    for over in ("REST", "gRPC"):
        with tempfile.TemporaryDirectory() as folder:
            answers = _under_load(folder, random, over, settings.requests)
        if answers is not None:
            yield Row("load", {"over": over, "requests": settings.requests, **_figures(answers)})


def _under_load(folder, encodings, over, requests):
    """The `Answers` of a server whose version changes meanwhile; None where it speaks no gRPC."""

    def put(version):
        identifiers = version * 2**32 + np.arange(SERVED_ROWS)
        _export(folder, encodings.targets, identifiers, k=10, version=version)

    put(1)
    with Server(folder, port=0, rest_port=0, poll_seconds=0.2) as server:
        port = server.rest_port if over == "REST" else server.port
        if port is None:
            return None
        clients.ask(port, encodings.queries, CLIENTS, CLIENTS, over)  # first calls take longer
        second = threading.Thread(target=put, args=[2])
        second.start()
        answers = clients.ask(port, encodings.queries, requests, CLIENTS, over)
        second.join()
    if answers.errors:
        print("\n".join(answers.errors))
    return answers


def _figures(answers):
    milliseconds = 1000 * answers.seconds
    return {
        "answered": int((answers.versions >= 0).sum()),
        "by_version_1": int((answers.versions == 1).sum()),
        "by_version_2": int((answers.versions == 2).sum()),
        "mixed": int((answers.versions == -1).sum()),
        "errors": int((answers.versions == -2).sum()),
        "per_s": len(milliseconds) / float(answers.ended.max() - answers.ended.min()),
        **{f"p{p}": float(np.percentile(milliseconds, p)) for p in (50, 90, 99)},
        "max": float(milliseconds.max()),
    }


def _export(path, targets, identifiers, k=K, **options):
    """An export that is asked with encodings."""
    spec = tf.TensorSpec([None, targets.shape[1]])
    return export_retrieval(
        path,
        encode_query=tf.identity,
        query_spec=spec,
        encode_target=tf.identity,
        target_spec=spec,
        embeddings=targets,
        identifiers=identifiers,
        k=k,
        **options,
    )
