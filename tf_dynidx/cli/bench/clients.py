"""Clients that ask a server as fast as they can, in processes of their own; no TensorFlow in here."""

import http.client
import json
import multiprocessing
import threading
import time
from typing import NamedTuple

import numpy as np

_THREADS = 8  # of a process: more, and they would wait for each other rather than for the server


class Answers(NamedTuple):
    """What clients got.

    Attributes:
        seconds: float [requests], from question to answer.
        ended: float [requests], when, in seconds since the clients began.
        versions: int [requests], which version answered; -1 where identifiers of several are mixed,
            -2 where there was no answer.
        errors: list of str, what went wrong, a few at most.
    """

    seconds: np.ndarray
    ended: np.ndarray
    versions: np.ndarray
    errors: list


def ask(port, queries, requests, clients, name="retrieval") -> Answers:
    """Asks over REST, each client one request after the other on one connection.

    Args:
        port: int, of REST on this machine.
        queries: float [queries, dim], asked in turn, one a request.
        requests: int, of all clients together.
        clients: int.
        name: of the model, whose identifiers are ``version * 2**32 + row``.
    """
    context = multiprocessing.get_context("spawn")
    shares = [len(each) for each in np.array_split(np.arange(clients), -(-clients // _THREADS))]
    counts = [share * requests // clients for share in shares]
    counts[0] += requests - sum(counts)
    bodies = [json.dumps({"instances": [query.tolist()]}).encode() for query in queries]
    with context.Pool(len(shares)) as pool:
        jobs = [
            (port, bodies, count, share, f"/v1/models/{name}:predict", time.time())
            for count, share in zip(counts, shares, strict=True)
        ]
        parts = pool.starmap(_ask, jobs)
    columns = zip(*parts, strict=True)
    *arrays, errors = columns
    return Answers(*(np.concatenate(each) for each in arrays), sum(errors, [])[:5])


def _ask(port, bodies, requests, threads, path, began):
    """The clients of one process."""
    results, errors, left = [], [], iter(range(requests))
    lock = threading.Lock()

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        mine = []
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                break
            start = time.perf_counter()
            try:
                connection.request("POST", path, bodies[number % len(bodies)])
                version = _version(connection.getresponse())
            except (OSError, ValueError, http.client.HTTPException) as error:
                errors.append(f"{type(error).__name__}: {error}")
                connection.close()
                version = -2
            mine.append((time.perf_counter() - start, time.time() - began, version))
        connection.close()
        with lock:
            results.extend(mine)

    workers = [threading.Thread(target=client) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    table = np.array(results, np.float64).reshape(-1, 3)
    return table[:, 0], table[:, 1], table[:, 2].astype(np.int64), errors


def _version(response):
    content = json.loads(response.read())
    if response.status != 200:
        raise ValueError(content.get("error"))
    identifiers = [number for row in content["predictions"] for number in row["identifiers"]]
    found = {number >> 32 for number in identifiers if number >= 0}
    return found.pop() if len(found) == 1 else -1
