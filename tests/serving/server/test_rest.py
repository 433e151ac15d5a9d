import base64
import http.client
import re

import numpy as np
import pytest
import tensorflow as tf

from tests.serving.server.asking import fetch, predict
from tests.serving.small import DIM, embeddings, exact, export, names
from tf_dynidx.serving.server import Server

N, K = 50, 5
TARGETS = embeddings(N)
QUERIES = embeddings(3, seed=1)
_, ROWS = exact(QUERIES, TARGETS, K)
FOUND = np.array(names(N))[ROWS].tolist()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("export") / "served"
    export(base, TARGETS, k=K, version=3)
    with Server(base, port=None, rest_port=0) as server:
        yield server


# Answers


def test_rows_of_values_are_answered_in_rows(server):
    status, answer = predict(server, {"instances": QUERIES.tolist()})
    assert status == 200
    assert [row["identifiers"] for row in answer["predictions"]] == FOUND
    for row, scores in zip(answer["predictions"], exact(QUERIES, TARGETS, K)[0], strict=True):
        np.testing.assert_allclose(row["scores"], scores, rtol=1e-5)


def test_rows_of_objects_may_each_have_their_own_options(server):
    rows = [
        {"query": QUERIES[0].tolist(), "k": 2, "exclude": [FOUND[0][0]]},
        {"query": QUERIES[1].tolist(), "k": 1, "exclude": [""]},
    ]
    status, answer = predict(server, {"signature_name": "retrieve_with", "instances": rows})
    assert status == 200
    assert answer["predictions"][0]["identifiers"] == FOUND[0][1:3]
    assert answer["predictions"][1]["identifiers"] == [FOUND[1][0], ""]


def test_columns_are_answered_in_columns(server):
    columns = {"query": QUERIES.tolist(), "k": 3, "exclude": [[], [], []]}
    _, answer = predict(server, {"signature_name": "retrieve_with", "inputs": columns})
    assert answer["outputs"]["identifiers"] == [found[:3] for found in FOUND]
    # A single input and a single output need no name.
    content = {"signature_name": "encode_target", "inputs": QUERIES.tolist()}
    _, answer = predict(server, content)
    np.testing.assert_allclose(answer["outputs"], QUERIES / 2, rtol=1e-6)
    _, answer = predict(server, {"signature_name": "similar", "instances": ["target 4"]})
    assert "target 4" not in answer["predictions"][0]["identifiers"]


def test_bytes_go_there_and_back_in_base64(tmp_path):
    odd = b"\xff\x00"
    path = export(tmp_path / "exported", TARGETS[:3], identifiers=[odd, b"plain", b"more"], k=2)
    with Server(path, port=None, rest_port=0) as server:
        target = {"b64": base64.b64encode(odd).decode()}
        content = {"signature_name": "similar", "inputs": {"identifiers": [target, "plain"]}}
        _, answer = predict(server, content)
    first, second = answer["outputs"]["identifiers"]
    assert sorted(first) == ["more", "plain"]
    assert target in second


def test_status_and_metadata_are_those_of_tf_serving(server):
    _, status = fetch(server, "/v1/models/retrieval")
    (version,) = status["model_version_status"]
    assert version == {
        "version": "3",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    assert fetch(server, "/v1/models/retrieval/versions/3") == (200, status)
    _, metadata = fetch(server, "/v1/models/retrieval/metadata")
    assert metadata["model_spec"] == {"name": "retrieval", "signature_name": "", "version": "3"}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["retrieve"]
    assert signature["method_name"] == "tensorflow/serving/predict"
    assert signature["inputs"]["query"]["dtype"] == "DT_FLOAT"
    sizes = [each["size"] for each in signature["inputs"]["query"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", str(DIM)]


def test_a_version_may_be_named(server):
    path = "/v1/models/retrieval/versions/{}:predict"
    content = {"instances": QUERIES.tolist()}
    assert fetch(server, path.format(3), content)[0] == 200
    status, answer = fetch(server, path.format(2), content)
    assert status == 404 and "Received: 'retrieval', version 2. Served is" in answer["error"]


# What is refused

QUERY = QUERIES[:1].tolist()


def options(**changed):
    inputs = {"query": QUERY, "k": 1, "exclude": [[""]]} | changed
    return {"signature_name": "retrieve_with", "inputs": inputs}


REFUSALS = {
    "signature": (
        {"signature_name": "find", "instances": QUERY},
        'signature name: "find" not found .* retrieve, retrieve_with, serving_default, similar',
    ),
    "dtype": ({"instances": [["a"] * DIM]}, "query must be of type float32. Received: 'a'"),
    "bool for float": ({"instances": [[True] * DIM]}, "query must be of type float32. Received: True"),
    "float for int": (options(k=1.5), "k must be of type int32. Received: 1.5"),
    "range of int": (options(k=2**31), "k must be of type int32. Received: 2147483648"),
    "number for text": (options(exclude=[[3]]), "exclude must be of type string. Received: 3"),
    "null": ({"instances": [None]}, "query must be of type float32. Received: None"),
    "base64": (options(exclude=[[{"b64": "?"}]]), "exclude has no valid base64. Received: "),
    "shape": ({"instances": [[1.0]]}, r"query must have the shape \[any, 8\]. Received: \[1, 1\]"),
    "scalar": ({"inputs": 1.0}, r"query must have the shape \[any, 8\]. Received: \[\]"),
    "ragged": ({"instances": [[1.0], [1.0, 2.0]]}, "of one length: pad them. Received: shapes"),
    "no rows": ({"instances": []}, "batch is empty.* Received: no instances"),
    "empty columns": (options(query=[]), r"query must have the shape \[any, 8\]. Received: \[0\]"),
    "different batches": (options(exclude=[[""], [""]]), "as many rows. Received: rows .*'query': 1"),
    "huge k": (options(k=2**31 - 1), r"k must be from 1 to 5, .* Received:\] \[2147483647\]"),
    "unknown target": (
        options(exclude=[["nobody"]]),
        r"exclude must be identifiers of targets in the index. Received unknown:\] \[.?nobody",
    ),
    "input": ({"inputs": {"text": QUERY}}, "inputs must be query. Received: text"),
    "input of a row": ({"instances": [{"text": QUERY[0]}]}, "inputs must be query. Received: text"),
    "no names": (options() | {"inputs": QUERY}, "give each by its name, exclude, k, query. Received: "),
    "neither": ({"signature_name": "retrieve"}, 'have "instances" or "inputs".* Received: the keys'),
    "both": ({"instances": QUERY, "inputs": QUERY}, 'have "instances" or "inputs", and not both'),
    "no list": ({"instances": 3}, '"instances" must be a list. Received: int'),
    "no object": ([1, 2], "A request is a JSON object. Received: "),
    "signature name": ({"signature_name": 3, "instances": QUERY}, "A request is a JSON object"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_request_gets_a_clear_error_and_the_server_goes_on(server, case):
    content, message = REFUSALS[case]
    status, answer = predict(server, content)
    assert status == 400
    assert answer.keys() == {"error"}
    assert re.search(message, answer["error"]), answer["error"]
    assert "{{node" not in answer["error"]
    assert predict(server, {"instances": QUERY})[0] == 200


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/v1/models/other:predict", {"instances": QUERY}, 404),
        ("/v1/models/retrieval:classify", {}, 404),
        ("/v1/models/retrieval:predict", None, 404),
        ("/v2/models", None, 404),
        ("/favicon.ico", None, 404),
    ],
)
def test_what_is_not_served_is_said_to_be_so(server, path, content, status):
    found, answer = fetch(server, path, content)
    assert found == status and "error" in answer


def test_what_is_no_json_is_refused(server):
    status, answer = fetch(server, "/v1/models/retrieval:predict", raw=b'{"instances": [')
    assert status == 400 and answer["error"].startswith("JSON Parse error")
    status, answer = fetch(server, "/v1/models/retrieval:predict", raw=b"[" * 100_000)
    assert status == 400


@pytest.mark.parametrize(("length", "status"), [(None, 411), ("many", 411), ("99999999999", 413)])
def test_a_body_of_unknown_or_endless_length_is_not_read(server, length, status):
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=10)
    connection.putrequest("POST", "/v1/models/retrieval:predict")
    if length is not None:
        connection.putheader("Content-Length", length)
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == status and b"Content-Length" in response.read()
    assert response.getheader("Connection") == "close"
    connection.close()
    assert predict(server, {"instances": QUERY})[0] == 200


def test_a_connection_serves_many_requests(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=10)
    for _ in range(3):
        connection.request("GET", "/v1/models/retrieval")
        sock = connection.sock
        assert connection.getresponse().read()
        assert connection.sock is sock and sock is not None
    connection.close()


def test_the_page_is_whole_and_refers_to_nothing_elsewhere(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=10)
    connection.request("GET", "/?q=x")
    response = connection.getresponse()
    page = response.read().decode()
    connection.close()
    assert response.getheader("Content-Type") == "text/html; charset=utf-8"
    assert 'content="retrieval"' in page and "{{" not in page
    assert "http://" not in page and "https://" not in page and "src=" not in page


def test_nothing_to_serve_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no export to serve. Received: .*nothing"):
        Server(tmp_path / "nothing", port=None, rest_port=0)
    tf.io.gfile.makedirs(str(tmp_path / "broken" / "1"))
    (tmp_path / "broken" / "1" / "saved_model.pb").write_bytes(b"broken")
    with pytest.raises(ValueError, match="No version .* can be loaded. Received: .*broken"):
        Server(tmp_path / "broken", port=None, rest_port=0)
