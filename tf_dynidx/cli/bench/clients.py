"""Clients that ask a server as fast as they can, in processes of their own, without TensorFlow."""

import contextlib
import http.client
import json
import multiprocessing
import threading
import time
from typing import NamedTuple

import numpy as np

_THREADS = 8  # of a process: more, and they would wait for each other rather than for the server
_TIMEOUT = 120  # seconds that a client waits for an answer


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


def ask(port, queries, requests, clients, over="REST", name="retrieval") -> Answers:
    """Asks a server, each client one request after the other on one connection.

    Args:
        port: int, on this machine.
        queries: float [queries, dim], asked in turn, one a request.
        requests: int, of all clients together.
        clients: int.
        over: "REST" or "gRPC", which the port is of; gRPC needs tensorflow-serving-api.
        name: of the model, whose identifiers are ``version * 2**32 + row``.
    """
    bodies, read = (_rest_bodies, _read_rest) if over == "REST" else (_rpc_bodies, _read_rpc)
    bodies = bodies(queries, name)
    context = multiprocessing.get_context("spawn")
    shares = [len(each) for each in np.array_split(np.arange(clients), -(-clients // _THREADS))]
    counts = [share * requests // clients for share in shares]
    counts[0] += requests - sum(counts)
    with context.Pool(len(shares)) as pool:
        jobs = [
            (over, port, name, bodies, count, share, time.time())
            for count, share in zip(counts, shares, strict=True)
        ]
        results = [result for part in pool.starmap(_ask, jobs) for result in part]
    seconds, ended, answers, errors = zip(*results, strict=True)
    versions, errors = np.full(len(answers), -2), list(filter(None, errors))
    for place, answer in enumerate(answers):
        if answer is not None:
            found = {number >> 32 for number in read(answer) if number >= 0}
            versions[place] = found.pop() if len(found) == 1 else -1
    return Answers(np.array(seconds), np.array(ended), versions, errors[:5])


def _ask(over, port, name, bodies, requests, threads, began):
    """The clients of one process: for each request its seconds, its end, the answer, the error."""
    results, left = [], iter(range(requests))
    lock = threading.Lock()

    def client():
        with (_rest_connection if over == "REST" else _rpc_connection)(port, name) as answer_of:
            while True:
                with lock:
                    number = next(left, None)
                if number is None:
                    return
                answer, error, start = None, None, time.perf_counter()
                try:
                    answer = answer_of(bodies[number % len(bodies)])
                except _Failed as failed:
                    error = str(failed)
                seconds = time.perf_counter() - start
                with lock:
                    results.append((seconds, time.time() - began, answer, error))

    workers = [threading.Thread(target=client) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


class _Failed(Exception):
    """A request that was not answered, and why."""


@contextlib.contextmanager
def _rest_connection(port, name):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)

    def answer_of(body):
        try:
            connection.request("POST", f"/v1/models/{name}:predict", body)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _Failed(f"{type(error).__name__}: {error}") from error
        if response.status != 200:
            raise _Failed(f"{response.status}: {answer.decode()}")
        return answer

    with contextlib.closing(connection):
        yield answer_of


@contextlib.contextmanager
def _rpc_connection(port, name):
    import grpc  # of an extra, and not for REST

    # Bytes are sent and returned as they are: messages are made and read where TensorFlow is.
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")

        def answer_of(body):
            try:
                return call(body, timeout=_TIMEOUT)
            except grpc.RpcError as error:
                raise _Failed(f"{error.code().name}: {error.details()}") from error

        yield answer_of


def _rest_bodies(queries, name):
    return [json.dumps({"instances": [query.tolist()]}).encode() for query in queries]


def _read_rest(answer):
    """The identifiers in an answer."""
    return [number for row in json.loads(answer)["predictions"] for number in row["identifiers"]]


def _rpc_bodies(queries, name):
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    def body(query):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        request.inputs["query"].CopyFrom(tf.make_tensor_proto(query[None], tf.float32))
        return request.SerializeToString()

    return [body(query) for query in queries]


def _read_rpc(answer):
    """The identifiers in an answer."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    response = predict_pb2.PredictResponse.FromString(answer)
    return tf.make_ndarray(response.outputs["identifiers"]).ravel().tolist()
