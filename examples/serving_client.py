"""Asks a served export, over REST or gRPC: TensorFlow Serving and `tf-dynidx serve` alike.

    python serving_client.py "a query"
    python serving_client.py "a query" -k 3 --exclude some-id other-id
    python serving_client.py --similar some-id
    python serving_client.py "a query" --grpc localhost:8500

REST needs nothing but Python; gRPC needs tensorflow-serving-api. The model takes one text (`query`) and
has strings for identifiers, as an export of `tf-dynidx train` does.
"""

import argparse
import json
import urllib.error
import urllib.request


def main():
    """Asks once and prints what comes back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("query", nargs="?", help="what to look for")
    parser.add_argument("--similar", metavar="ID", help="a target whose neighbours are wanted instead")
    parser.add_argument("-k", type=int, help="how many results (default: as many as the export has)")
    parser.add_argument("--exclude", nargs="*", default=[], metavar="ID", help="targets to leave out")
    parser.add_argument("--name", default="retrieval", help="of the model (default retrieval)")
    parser.add_argument("--rest", default="http://localhost:8501", metavar="URL")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="ask over gRPC instead")
    options = parser.parse_args()
    if (options.query is None) == (options.similar is None):
        parser.error("give a query, or --similar")

    signature, inputs = request(options)
    ask = over_grpc if options.grpc else over_rest
    scores, identifiers = ask(options, signature, inputs)
    for score, identifier in zip(scores, identifiers, strict=True):
        if identifier:  # "" stands where there is no further target
            print(f"{score:.4f}  {identifier}")


def request(options):
    """The signature that answers, and its inputs: a batch of one."""
    if options.similar is not None:
        return "similar", {"identifiers": [options.similar]}
    if options.k is None and not options.exclude:
        return "retrieve", {"query": [options.query]}
    if options.k is None:
        raise SystemExit("--exclude needs -k as well: a signature has no optional inputs")
    # "" excludes nothing.
    excluded = [options.exclude or [""]]
    return "retrieve_with", {"query": [options.query], "k": options.k, "exclude": excluded}


def over_rest(options, signature, inputs):
    """Scores and identifiers, from the columns of a REST answer."""
    call = urllib.request.Request(
        f"{options.rest}/v1/models/{options.name}:predict",
        data=json.dumps({"signature_name": signature, "inputs": inputs}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(call, timeout=60) as response:
            outputs = json.load(response)["outputs"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"refused: {json.load(error)['error']}") from error
    return outputs["scores"][0], outputs["identifiers"][0]


def over_grpc(options, signature, inputs):
    """Scores and identifiers, from the tensors of a gRPC answer."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    message = predict_pb2.PredictRequest()
    message.model_spec.name = options.name
    message.model_spec.signature_name = signature
    for name, value in inputs.items():
        dtype = tf.int32 if name == "k" else tf.string
        message.inputs[name].CopyFrom(tf.make_tensor_proto(value, dtype))
    with grpc.insecure_channel(options.grpc) as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            outputs = service.Predict(message, timeout=60).outputs
        except grpc.RpcError as error:
            raise SystemExit(f"refused: {error.details()}") from error
    scores = tf.make_ndarray(outputs["scores"])[0].tolist()
    return scores, [each.decode() for each in tf.make_ndarray(outputs["identifiers"])[0]]


if __name__ == "__main__":
    main()
