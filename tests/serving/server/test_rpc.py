import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.serving.small import embeddings, exact, export, names
from tf_dynidx.serving.server import Server

N, K = 50, 5
TARGETS = embeddings(N)
QUERIES = embeddings(3, seed=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("export") / "served"
    export(base, TARGETS, k=K, version=3)
    with Server(base, port=0, rest_port=0) as server:
        yield server


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


def ask(channel, signature="", version=None, name="retrieval", outputs=(), **inputs):
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name, request.model_spec.signature_name = name, signature
    if version is not None:
        request.model_spec.version.value = version
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)


def test_answer_says_which_version_and_signature_it_is_of(channel):
    response = ask(channel, query=QUERIES)
    scores, rows = exact(QUERIES, TARGETS, K)
    np.testing.assert_allclose(tf.make_ndarray(response.outputs["scores"]), scores, rtol=1e-5)
    found = tf.make_ndarray(response.outputs["identifiers"])
    assert [[each.decode() for each in row] for row in found] == np.array(names(N))[rows].tolist()
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("retrieval", 3, "serving_default")


def test_only_outputs_that_are_asked_for_are_sent(channel):
    response = ask(channel, "retrieve", 3, outputs=["scores"], query=QUERIES)
    assert list(response.outputs) == ["scores"]


def test_status_and_metadata_are_told(channel):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "retrieval"
    (found,) = (
        model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request).model_version_status
    )
    assert found.version == 3 and found.state == found.AVAILABLE
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "retrieval"
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.GetModelMetadata(request)
    definitions = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(definitions)
    retrieve = definitions.signature_def["retrieve"]
    assert retrieve.inputs["query"].dtype == tf.float32.as_datatype_enum
    assert set(retrieve.outputs) == {"scores", "identifiers"}


WITH = {"signature": "retrieve_with", "query": QUERIES[:1], "k": np.int32(1), "exclude": [[""]]}
INVALID, UNKNOWN = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
REFUSALS = {
    "signature": ({"signature": "find"}, INVALID, 'signature name: "find" not found'),
    "dtype": ({"query": QUERIES.astype(float)}, INVALID, "float32. Received: float64"),
    "empty batch": ({"query": QUERIES[:0]}, INVALID, "The batch is empty"),
    "input": ({"text": QUERIES}, INVALID, "inputs must be query. Received: query, text"),
    "huge k": (WITH | {"k": np.int32(2**31 - 1)}, INVALID, "k must be from 1 to 5"),
    "unknown": (WITH | {"exclude": [["nobody"]]}, INVALID, "identifiers of targets .*nobody"),
    "output": ({"outputs": ["rows"]}, INVALID, r"must name outputs: .* Received: \['rows'\]"),
    "version": ({"version": 2}, UNKNOWN, "Servable not found .* version 2"),
    "model": ({"name": "other"}, UNKNOWN, "Servable not found .* 'other'"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_request_gets_a_clear_error_and_the_server_goes_on(channel, case):
    change, code, message = REFUSALS[case]
    with pytest.raises(grpc.RpcError, match=message) as refused:
        ask(channel, **({"query": QUERIES} | change))
    assert refused.value.code() == code
    assert ask(channel, query=QUERIES).outputs


def test_a_tensor_that_is_none_is_refused(channel):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "retrieval"
    request.inputs["query"].dtype = tf.float32.as_datatype_enum
    request.inputs["query"].tensor_shape.dim.add(size=3)
    request.inputs["query"].tensor_content = b"x"
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    with pytest.raises(grpc.RpcError, match="query is not a tensor. Received: ") as refused:
        stub.Predict(request)
    assert refused.value.code() == INVALID


def test_a_port_that_is_taken_is_said(server, tmp_path):
    path = export(tmp_path / "exported", TARGETS[:9], k=1)
    with pytest.raises(OSError, match=f"listen at 127.0.0.1:{server.port}. Name another --port"):
        Server(path, port=server.port, rest_port=0)
    with pytest.raises(OSError, match=f"listen at 127.0.0.1:{server.rest_port}: .* --rest-port"):
        Server(path, port=None, rest_port=server.rest_port)
