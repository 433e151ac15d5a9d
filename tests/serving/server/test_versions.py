import gc
import shutil
import threading
import weakref

import numpy as np
import pytest

from tests.serving.server.asking import fetch, predict
from tests.serving.small import embeddings, export
from tf_dynidx.serving.server import Server
from tf_dynidx.serving.server.predict import RequestError
from tf_dynidx.serving.server.versions import Versions

TARGETS = embeddings(20)
QUERIES = embeddings(2, seed=1)


def put(base, version):
    """A version whose identifiers say of which version they are."""
    rows = np.arange(20)
    return export(base, TARGETS, identifiers=version * 1000 + rows, k=3, version=version)


@pytest.fixture
def base(tmp_path):
    put(tmp_path / "served", 1)
    return tmp_path / "served"


def test_newest_version_takes_over_and_the_one_before_is_freed(base):
    versions = Versions(base, "m")
    first = versions.get("m")
    assert (first.version, versions.look()) == (1, False)
    put(base, 4)
    put(base, 2)
    assert versions.look()
    assert versions.get("m").version == 4
    answer = first.signatures["retrieve"](query=QUERIES)  # still in somebody's hands
    assert (answer["identifiers"].numpy() // 1000 == 1).all()
    gone = weakref.ref(first.model)
    del first, answer
    gc.collect()
    assert gone() is None
    with pytest.raises(RequestError, match="Received: 'm', version 1. Served is 'm', version 4."):
        versions.get("m", 1)


def test_a_broken_version_is_passed_over_and_tried_again(base, capfd):
    versions = Versions(base, "m")
    whole = put(base, 2)
    shutil.move(whole, base / "kept")
    (base / "2").mkdir()
    shutil.copy(base / "kept" / "saved_model.pb", base / "2")  # a copy under way: no variables yet
    assert not versions.look() and not versions.look()
    assert capfd.readouterr().err.count("version 2 cannot be loaded: ") == 1
    assert versions.get("m").version == 1
    shutil.rmtree(base / "2")
    shutil.move(base / "kept", base / "2")
    assert versions.look() and versions.get("m").version == 2


def test_an_export_without_versions_is_version_1(tmp_path):
    versions = Versions(export(tmp_path / "exported", TARGETS), "m")
    assert versions.get("m").version == 1 and not versions.look()


def test_a_request_under_way_is_answered_before_the_server_stops(base):
    server = Server(base, port=None, rest_port=0)
    loaded, began, go_on = server.versions.get("retrieval"), threading.Event(), threading.Event()
    retrieve = loaded.signatures["retrieve"]

    class Slow:
        structured_input_signature = retrieve.structured_input_signature

        def __call__(self, **inputs):
            began.set()
            go_on.wait(30)
            return retrieve(**inputs)

    loaded.signatures["retrieve"] = Slow()
    answers = []
    content = {"signature_name": "retrieve", "inputs": QUERIES.tolist()}
    client = threading.Thread(target=lambda: answers.append(predict(server, content)))
    client.start()
    assert began.wait(30)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    stopping.join(0.5)
    assert stopping.is_alive()
    go_on.set()
    client.join()
    stopping.join()
    assert answers[0][0] == 200


def test_no_request_is_dropped_or_mixed_while_a_new_version_comes(base):
    stop, answers, problems = threading.Event(), [], []

    def ask(server):
        while not stop.is_set():
            status, answer = predict(server, {"inputs": QUERIES.tolist()})
            if status != 200:
                problems.append(answer)
                return
            answers.append(np.unique(np.array(answer["outputs"]["identifiers"]) // 1000).tolist())

    with Server(base, port=None, rest_port=0, poll_seconds=0.05) as server:
        threads = [threading.Thread(target=ask, args=[server]) for _ in range(4)]
        for thread in threads:
            thread.start()
        put(base, 2)
        for _ in range(600):
            version = fetch(server, "/v1/models/retrieval")[1]["model_version_status"][0]["version"]
            if version == "2":
                break
            stop.wait(0.05)
        seen = len(answers)
        predict(server, {"inputs": QUERIES.tolist()})
        stop.set()
        for thread in threads:
            thread.join()
        _, last = predict(server, {"inputs": QUERIES.tolist()})
    assert not problems
    assert seen and all(answer in ([1], [2]) for answer in answers)  # each of one version alone
    assert (np.array(last["outputs"]["identifiers"]) // 1000 == 2).all()
