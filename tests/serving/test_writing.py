import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.serving.small import DIM, Scale, embeddings, export, signatures
from tf_dynidx.files import OutputError
from tf_dynidx.serving.folders import newest, versions

TARGETS = embeddings(40)
EXTRA = "assets.extra"


def files_in(folder):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


# Versions


def test_versions_stand_side_by_side_as_tf_serving_wants_them(tmp_path):
    base = tmp_path / "served"
    assert export(base, TARGETS, version=7) == str(base / "7")
    assert export(base, TARGETS, version="next") == str(base / "8")
    (base / "latest").mkdir()
    (base / "12").mkdir()  # not an export, but taken
    assert versions(base) == [7, 8]
    assert newest(base) == base / "8"
    assert export(base, TARGETS, version="next") == str(base / "13")
    with pytest.raises(OutputError, match="not empty. Received: "):
        export(base, TARGETS, version=7)
    assert newest(base / "7") == base / "7"  # a SavedModel by itself


@pytest.mark.parametrize("version", [0, -1, 1.5, "2", True])
def test_version_that_is_none_is_refused(tmp_path, version):
    with pytest.raises(ValueError, match=f"Received: version={version!r}"):
        export(tmp_path / "served", TARGETS, version=version)
    assert not list(tmp_path.iterdir())


def test_versions_are_not_put_into_an_export(tmp_path):
    path = export(tmp_path / "exported", TARGETS)
    with pytest.raises(ValueError, match="folder of their own. Received: the SavedModel .*exported"):
        export(path, TARGETS, version="next")
    assert versions(path) == []


def test_a_reader_never_sees_half_a_version(tmp_path, monkeypatch):
    seen = []
    save = tf.saved_model.save

    def looked_at(module, folder, **kwargs):
        save(module, folder, **kwargs)
        seen.append((Path(folder).parent.name, versions(tmp_path / "served")))

    monkeypatch.setattr(tf.saved_model, "save", looked_at)
    path = export(tmp_path / "served", TARGETS, version=1)
    assert seen == [("served", [])]  # beside its place, under a name that is no number
    assert files_in(path) >= {"saved_model.pb", f"{EXTRA}/model_card.json"}
    assert versions(tmp_path / "served") == [1]


# What else is written


def test_model_card_says_what_is_inside(tmp_path):
    metrics = {"recall@10": np.float32(0.5)}
    path = export(tmp_path / "exported", TARGETS, metrics=metrics, identifiers=range(40), k=3)
    card = json.loads(Path(path, EXTRA, "model_card.json").read_text())
    assert card["metrics"] == {"recall@10": 0.5}
    assert (card["targets"], card["dim"], card["k"], card["identifiers"]) == (40, DIM, 3, "int64")
    assert card["versions"]["tensorflow"] == tf.__version__
    assert card["date"].endswith("+00:00")
    loaded = signatures(path)
    assert card["signatures"].keys() == set(loaded)
    for name, described in card["signatures"].items():
        inputs = loaded[name].structured_input_signature[1]
        assert described["inputs"].keys() == inputs.keys()
        for key, spec in inputs.items():
            assert described["inputs"][key]["dtype"] == spec.dtype.name
        outputs = loaded[name].structured_outputs
        for key, spec in outputs.items():
            assert described["outputs"][key]["dtype"] == spec.dtype.name
            assert described["outputs"][key]["shape"] == spec.shape.as_list()
            assert described["outputs"][key]["meaning"]


def test_warm_up_request_is_one_that_the_model_answers(tmp_path):
    from tensorflow_serving.apis import prediction_log_pb2

    sample = embeddings(3, seed=1)
    path = export(tmp_path / "exported", TARGETS, sample_queries=sample)
    records = tf.data.TFRecordDataset(str(Path(path, EXTRA, "tf_serving_warmup_requests")))
    (record,) = records.as_numpy_iterator()
    request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
    assert request.model_spec.signature_name == "retrieve"
    (query,) = request.inputs.values()
    assert list(request.inputs) == ["query"]
    np.testing.assert_array_equal(tf.make_ndarray(query), sample[:1])


def test_a_model_that_fails_on_made_up_features_has_no_warm_up_request(tmp_path):
    class Picky(Scale):
        def __call__(self, features):
            some = tf.debugging.assert_positive(features)
            with tf.control_dependencies([some]):
                return super().__call__(features)

    path = export(tmp_path / "exported", TARGETS, encode_query=Picky())
    assert f"{EXTRA}/tf_serving_warmup_requests" not in files_in(path)
    assert json.loads(Path(path, EXTRA, "model_card.json").read_text())["warmup_requests"] == 0


# As others see it


def test_saved_model_cli_shows_readable_names(tmp_path):
    path = export(tmp_path / "exported", TARGETS)
    program = "from tensorflow.python.tools.saved_model_cli import main; main()"
    options = ["show", "--dir", path, "--tag_set", "serve", "--signature_def", "retrieve_with"]
    shown = subprocess.run(
        [sys.executable, "-c", program, *options], capture_output=True, text=True, check=True
    ).stdout
    for name in ("query", "k", "exclude"):
        assert f"inputs['{name}'] tensor_info" in shown
    for name in ("scores", "identifiers"):
        assert f"outputs['{name}'] tensor_info" in shown


@pytest.mark.parametrize("index", ["exact", "tree"])
def test_every_operation_is_one_of_core_tensorflow(tmp_path, index):
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow.python.framework import op_def_registry

    path = export(tmp_path / "exported", TARGETS, index=index, row_dtype="int8")
    graph = saved_model_pb2.SavedModel.FromString(Path(path, "saved_model.pb").read_bytes())
    graph = graph.meta_graphs[0].graph_def
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    functions = {f.signature.name for f in graph.library.function}
    operations = {node.op for node in nodes} - functions
    assert len(operations) > 20
    assert not [name for name in operations if op_def_registry.get(name) is None]
    assert not [name for name in operations if "PyFunc" in name]
