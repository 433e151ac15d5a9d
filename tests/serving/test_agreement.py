import json
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.reference import top_k
from tests.serving.server.asking import predict
from tf_dynidx import DualEncoder, TargetCorpus
from tf_dynidx.keras_world import keras
from tf_dynidx.miners import InBatch
from tf_dynidx.serving import refresh_export
from tf_dynidx.serving.server import Server

WORDS = ["red", "green", "blue", "small", "large", "round", "square", "soft", "hard", "warm", "cold"]
TARGETS = [f"{a} {b}" for a in WORDS for b in WORDS]
QUERIES = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS]  # 1,331
ASKED, K, DIM = 1000, 10, 16
EXAMPLES = Path(__file__).parents[2] / "examples"


def text_tower():
    """Words, looked up, embedded and averaged: preprocessing is a part of the tower."""
    text = keras.Input([], dtype="string")
    ids = keras.layers.TextVectorization(vocabulary=WORDS, output_sequence_length=3)(text)
    vectors = keras.layers.Embedding(len(WORDS) + 2, DIM, embeddings_initializer="normal")(ids)
    mixed = keras.layers.Dense(DIM, activation="tanh")(keras.layers.Flatten()(vectors))
    return keras.Model(text, keras.layers.UnitNormalization()(mixed))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Folder of an export, queries and what the model in memory answers: scores, identifiers."""
    keras.utils.set_random_seed(0)
    corpus = TargetCorpus(np.array(TARGETS), identifiers=TARGETS)
    model = DualEncoder(text_tower(), text_tower(), corpus, InBatch(), temperature=0.1)
    base = tmp_path_factory.mktemp("export") / "served"
    model.export_retrieval(base, k=K, version=1, sample_queries=QUERIES[:300])
    scores = model.encode_queries(tf.constant(QUERIES)).numpy() @ model.encode_corpus().T
    scores, rows = top_k(scores, K + 1)
    # Scores that differ by rounding alone may come in either order: such queries are not asked.
    clear = np.flatnonzero((np.diff(scores, axis=1) < -1e-5).all(axis=1))[:ASKED]
    assert len(clear) == ASKED
    queries = [QUERIES[each] for each in clear]
    return base, queries, scores[clear, :K], np.array(TARGETS)[rows[clear, :K]].tolist()


@pytest.fixture(scope="module")
def server(served):
    with Server(served[0], port=0, rest_port=0) as server:
        yield server


def assert_agree(served, scores, identifiers):
    _, _, expected_scores, expected = served
    assert identifiers == expected
    np.testing.assert_allclose(np.asarray(scores, np.float32), expected_scores, atol=1e-5)


def as_text(identifiers):
    return [[each.decode() for each in row] for row in identifiers]


def test_reloaded_export_agrees_with_the_model_in_memory(served):
    retrieve = tf.saved_model.load(str(served[0] / "1")).signatures["retrieve"]
    (name,) = retrieve.structured_input_signature[1]
    answer = retrieve(**{name: tf.constant(served[1])})
    assert_agree(served, answer["scores"], as_text(answer["identifiers"].numpy()))


def test_rest_agrees_with_the_model_in_memory(served, server):
    status, answer = predict(server, {"inputs": served[1]})
    assert status == 200
    assert_agree(served, answer["outputs"]["scores"], answer["outputs"]["identifiers"])


def test_grpc_agrees_with_the_model_in_memory(served, server):
    scores, identifiers = [], []
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for start in range(0, ASKED, 50):
            request = predict_pb2.PredictRequest()
            request.model_spec.name = "retrieval"
            (name,) = server.versions.get("retrieval").signature_defs["retrieve"]["inputs"]
            request.inputs[name].CopyFrom(tf.make_tensor_proto(served[1][start : start + 50]))
            outputs = stub.Predict(request, timeout=60).outputs
            scores.extend(tf.make_ndarray(outputs["scores"]))
            identifiers.extend(as_text(tf.make_ndarray(outputs["identifiers"])))
    assert_agree(served, scores, identifiers)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The C example, linked with the TensorFlow that is installed."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "This test builds a C program: install a C compiler (Debian: apt install gcc)."
    folder = Path(tf.__file__).parent
    libraries = {path.name: path for path in folder.glob("libtensorflow*.[sd]*")}
    mine = [name for name in sorted(libraries) if "_cc." in name or "_framework." in name]
    path = tmp_path_factory.mktemp("program") / "retrieve"
    linux = ["-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined"] if sys.platform == "linux" else []
    command = [
        *(
            compiler,
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            str(EXAMPLES / "retrieve.c"),
            "-o",
            str(path),
        ),
        *(f"-I{folder / 'include'}", *linux, *(str(libraries[name]) for name in mine)),
        f"-Wl,-rpath,{folder}",
    ]
    subprocess.run(command, check=True)
    return path


def test_c_program_agrees_with_the_model_in_memory(served, program):
    done = subprocess.run(
        [program, served[0] / "1"],
        input="\n".join(served[1]),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [int(line[0]) for line in lines] == np.repeat(np.arange(ASKED), K).tolist()
    scores = np.array([float(line[1]) for line in lines]).reshape(ASKED, K)
    identifiers = np.array([line[2] for line in lines]).reshape(ASKED, K).tolist()
    assert_agree(served, scores, identifiers)


def test_c_program_says_what_is_wrong(served, program):
    for folder, signature, message in [
        ("nowhere", "retrieve", "cannot be loaded. Received: Could not find SavedModel"),
        (served[0] / "1", "find", "no such signature. Received: find"),
        (served[0] / "1", "encode_query", "lacks a tensor. Received: scores"),
    ]:
        command = [program, folder, signature]
        done = subprocess.run(command, input="red\n", capture_output=True, text=True, check=False)
        assert done.returncode == 1 and message in done.stderr


def ask_example(server, *arguments, rest=True):
    where = ["--rest", f"http://127.0.0.1:{server.rest_port}"]
    where = where if rest else ["--grpc", f"127.0.0.1:{server.port}"]
    command = [sys.executable, EXAMPLES / "serving_client.py", *arguments, *where]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def answered(done):
    assert done.returncode == 0, done.stderr
    return [line.split("  ")[1] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("rest", [True, False], ids=["rest", "grpc"])
def test_example_client_asks_and_leaves_out(served, server, rest):
    query, found = served[1][0], served[3][0]
    less = ask_example(server, query, "-k", "3", "--exclude", found[0], found[2], rest=rest)
    assert answered(less) == [found[1], found[3], found[4]]
    refused = ask_example(server, query, "-k", "11", rest=rest)
    assert (
        refused.returncode == 1 and "refused: " in refused.stderr and "from 1 to 10" in refused.stderr
    )


def test_example_client_asks_for_all_and_for_neighbours(served, server):
    assert answered(ask_example(server, served[1][0])) == served[3][0]
    neighbours = answered(ask_example(server, "--similar", TARGETS[0]))
    assert len(neighbours) == K and TARGETS[0] not in neighbours


def test_card_says_that_nothing_is_lost(served):
    card = json.loads((served[0] / "1" / "assets.extra" / "model_card.json").read_text())
    assert card["expected_recall"]["recall"] == 1.0
    assert card["expected_recall"]["measured_on"] == "sample queries"


def test_next_version_encodes_new_targets_as_the_model_would(served, tmp_path):
    base, *_ = served
    # The same text under another name: it scores as the target that has it already.
    new = TargetCorpus(np.array(TARGETS[:1]), identifiers=["the same again"])
    path = refresh_export(base, added=new, removed=TARGETS[1:2], output=tmp_path / "served")
    similar = tf.saved_model.load(path).signatures["similar"]
    answer = similar(identifiers=tf.constant(TARGETS[:1]))
    assert answer["identifiers"].numpy()[0, 0] == b"the same again"
    assert answer["scores"].numpy()[0, 0] == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="unknown"):
        similar(identifiers=tf.constant(TARGETS[1:2]))
