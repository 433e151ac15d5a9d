"""TF Serving's `PredictionService` and `ModelService` over gRPC.

The definitions of the messages are those of the package tensorflow-serving-api.
"""

from concurrent import futures

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tf_dynidx.serving.server.predict import (
    DEFAULT_SIGNATURE,
    RequestError,
    check_names,
    predict,
    signature_of,
    specs_of,
)
from tf_dynidx.serving.server.versions import Versions

_THREADS = 64
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),  # otherwise two servers share a port, each with a part of the requests
]


def rpc_server(host: str, port: int, versions: Versions) -> tuple[grpc.Server, int]:
    """A server that has not been started, and its port.

    Args:
        host: to listen at.
        port: 0 for any that is free.
        versions: what is served.

    Raises:
        OSError: the port is taken.
    """
    server = grpc.server(futures.ThreadPoolExecutor(_THREADS), options=_OPTIONS)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Predictions(versions), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(versions), server)
    host = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"Nothing can listen at {host}:{port}. Name another --port.") from error
    return server, bound


class _Predictions(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, versions):
        self._versions = versions

    def Predict(self, request, context):
        return _answered(context, lambda: self._predict(request))

    def GetModelMetadata(self, request, context):
        return _answered(context, lambda: self._metadata(request))

    def _predict(self, request):
        loaded = _loaded(self._versions, request.model_spec)
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        signature = signature_of(loaded, name)
        check_names(specs_of(signature), request.inputs)
        outputs = predict(signature, {key: _array(key, v) for key, v in request.inputs.items()})
        check_known(request.output_filter, outputs)
        response = predict_pb2.PredictResponse()
        _fill(response.model_spec, self._versions.name, loaded.version, name)
        for key, value in outputs.items():
            if not request.output_filter or key in request.output_filter:
                response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
        return response

    def _metadata(self, request):
        loaded = _loaded(self._versions, request.model_spec)
        if list(request.metadata_field) != ["signature_def"]:
            raise RequestError(
                "INVALID_ARGUMENT",
                "The metadata there is is signature_def. "
                f"Received: metadata_field {list(request.metadata_field)}.",
            )
        definitions = get_model_metadata_pb2.SignatureDefMap()
        for name, described in loaded.signature_defs.items():
            definition = json_format.ParseDict(described, meta_graph_pb2.SignatureDef())
            definitions.signature_def[name].CopyFrom(definition)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        _fill(response.model_spec, self._versions.name, loaded.version)
        response.metadata["signature_def"].Pack(definitions)
        return response


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, versions):
        self._versions = versions

    def GetModelStatus(self, request, context):
        return _answered(context, lambda: self._status(request))

    def _status(self, request):
        loaded = _loaded(self._versions, request.model_spec)
        response = get_model_status_pb2.GetModelStatusResponse()
        available = get_model_status_pb2.ModelVersionStatus.State.AVAILABLE
        response.model_version_status.add(version=loaded.version, state=available)
        return response


def check_known(wanted, outputs):
    """Raises a RequestError where a wanted output is none."""
    unknown = sorted(set(wanted) - outputs.keys())
    if unknown:
        raise RequestError(
            "INVALID_ARGUMENT",
            f"output_filter must name outputs: {', '.join(sorted(outputs))}. Received: {unknown}.",
        )


def _loaded(versions, spec):
    version = spec.version.value if spec.HasField("version") else None
    return versions.get(spec.name, version)


def _fill(spec, name, version, signature=""):
    spec.name, spec.signature_name = name, signature
    spec.version.value = version


def _array(name, proto) -> np.ndarray:
    try:
        return tf.make_ndarray(proto)
    except (TypeError, ValueError) as error:
        raise RequestError(
            "INVALID_ARGUMENT", f"The input {name} is not a tensor. Received: {error}."
        ) from error


def _answered(context, get):
    try:
        return get()
    except RequestError as error:
        context.abort(getattr(grpc.StatusCode, error.code), error.message)
