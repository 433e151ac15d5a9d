import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.serving.small import DIM, Scale, as_text, embeddings, exact, export, names, signatures
from tf_dynidx import TargetCorpus
from tf_dynidx.files import OutputError
from tf_dynidx.serving import refresh_export

N, K = 300, 10
TARGETS = embeddings(N)
QUERIES = embeddings(25, seed=1)
FRESH = embeddings(9, seed=2)
ADDED = TargetCorpus(FRESH[:5], identifiers=[f"new {i}" for i in range(5)])
UPDATED = TargetCorpus(FRESH[5:], identifiers=["target 7", "target 0", "target 299", "target 8"])
REMOVED = ["target 1", "target 298"]


def changed():
    """What the changes leave: encodings and names, in NumPy. Encoding a target halves it."""
    rows, ids = TARGETS.copy(), names(N)
    rows[[7, 0, 299, 8]] = FRESH[5:] / 2
    keep = [row for row in range(N) if ids[row] not in REMOVED]
    return np.concatenate([rows[keep], FRESH[:5] / 2]), [ids[row] for row in keep] + [
        f"new {i}" for i in range(5)
    ]


def card(path):
    return json.loads(Path(path, "assets.extra", "model_card.json").read_text())


@pytest.mark.parametrize(
    "options", [{}, {"index": "tree", "budget": N, "row_dtype": "float16"}], ids=["exact", "tree"]
)
def test_next_version_answers_for_the_changed_targets(tmp_path, options):
    base = tmp_path / "served"
    first = export(base, TARGETS, version=1, metrics={"mrr": 0.5}, **options)
    path = refresh_export(base, added=ADDED, removed=REMOVED, updated=UPDATED)
    assert path == str(base / "2")
    targets, ids = changed()
    tolerance = 2e-3 if options else 1e-5
    answer = signatures(path)["retrieve"](query=QUERIES)
    scores, rows = exact(QUERIES, targets, K)
    np.testing.assert_allclose(answer["scores"], scores, rtol=tolerance)
    if not options:
        assert as_text(answer["identifiers"]) == np.array(ids)[rows].tolist()
    similar = signatures(path)["similar"](identifiers=tf.constant(["new 3"]))
    own = targets @ targets[ids.index("new 3")]
    own[ids.index("new 3")] = -np.inf
    np.testing.assert_allclose(similar["scores"][0], np.sort(own)[::-1][:K], rtol=tolerance)
    said = card(path)
    assert said["refreshed"] == {"from": "1", "added": 5, "removed": 2, "updated": 4}
    assert said["metrics"] == {"mrr": 0.5} and said["targets"] == N + 3
    assert said["index"] == card(first)["index"] | {"rows_scored": said["index"]["rows_scored"]}
    before = signatures(first)["retrieve"](query=QUERIES)  # the earlier version is as it was
    np.testing.assert_allclose(before["scores"], exact(QUERIES, TARGETS, K)[0], rtol=tolerance)


def test_only_what_is_new_is_encoded(tmp_path):
    class Counting(Scale):
        """An encoder whose encodings say how many it was given: it is told apart by them."""

        def __call__(self, features):
            return super().__call__(features) * tf.cast(tf.shape(features)[0], tf.float32)

    base = tmp_path / "served"
    export(base, TARGETS, version=1, encode_target=Counting())
    path = refresh_export(base, added=ADDED)
    held = tf.saved_model.load(path).index.rows.numpy()
    np.testing.assert_array_equal(held[:N], TARGETS)
    np.testing.assert_allclose(held[N:], FRESH[:5] * 5)


@pytest.mark.parametrize(
    ("kind", "row_dtype"), [("exact", "float16"), ("exact", "int8"), ("tree", "int8")]
)
def test_rows_that_stay_are_carried_over_bit_by_bit(tmp_path, kind, row_dtype):
    base = tmp_path / "served"
    first = export(base, TARGETS, version=1, index=kind, budget=N, row_dtype=row_dtype)
    path = first
    for number in range(1 if kind == "tree" else 2):
        corpus = TargetCorpus(FRESH[:1], identifiers=[f"new {number}"])
        path = refresh_export(base, added=corpus)
    ids = tf.constant(names(N))
    before, after = (tf.saved_model.load(each) for each in (first, path))
    rows = [loaded.index for loaded in (before, after)]

    def read(loaded):
        if kind == "exact":
            return loaded.rows.numpy()[:N]
        return loaded.tree.rows.numpy()[loaded.tree.slots.variable.numpy()[:N]]

    np.testing.assert_array_equal(*(read(each) for each in rows))
    assert after.identifiers.values.numpy()[:N].tolist() == ids.numpy().tolist()


def test_the_same_targets_are_packed_another_way(tmp_path):
    plain = export(tmp_path / "exported", TARGETS)
    options = {"index": "tree", "row_dtype": "int8", "k": 4, "budget": 150}
    path = refresh_export(plain, output=tmp_path / "served", **options)
    assert path == str(tmp_path / "served" / "1")
    said = card(path)
    assert said["index"] == {"kind": "tree", "row_dtype": "int8", "budget": 150, "rows_scored": 150}
    answer = signatures(path)["retrieve"](query=QUERIES)
    assert answer["scores"].shape == [len(QUERIES), 4]
    np.testing.assert_allclose(answer["scores"][:, 0], exact(QUERIES, TARGETS, 1)[0][:, 0], rtol=0.02)
    back = refresh_export(tmp_path / "served", index="exact")
    assert card(back)["index"]["budget"] is None


def test_lookup_tables_and_their_files_go_along_from_version_to_version(tmp_path):
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("red\ngreen\n")

    class Words(tf.Module):
        def __init__(self):
            super().__init__()
            initializer = tf.lookup.TextFileInitializer(
                str(vocabulary), tf.string, 0, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
            )
            self.table = tf.lookup.StaticHashTable(initializer, -1)

        def __call__(self, text):
            return tf.one_hot(self.table.lookup(text), DIM)

    words, text = Words(), tf.TensorSpec([None], tf.string)
    options = {"encode_query": words, "query_spec": text, "encode_target": words, "target_spec": text}
    export(tmp_path / "served", np.eye(DIM), k=2, version=1, trackables=[words], **options)
    vocabulary.unlink()
    corpus = TargetCorpus(["green"], identifiers=["the green one"])
    refresh_export(tmp_path / "served", added=corpus)
    path = refresh_export(tmp_path / "served", removed=["target 1"])
    answer = signatures(path)["retrieve"](query=tf.constant(["green"]))
    assert as_text(answer["identifiers"])[0][0] == "the green one"
    for file in Path(path).rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()


def test_the_graph_does_not_grow_with_every_refresh(tmp_path):
    base = tmp_path / "served"
    export(base, TARGETS, version=1)
    sizes = []
    for number in range(4):
        corpus = TargetCorpus(FRESH[:1], identifiers=["new"])
        path = refresh_export(base, added=corpus) if number % 2 == 0 else ""
        path = path or refresh_export(base, removed=["new"])
        sizes.append(Path(path, "saved_model.pb").stat().st_size)
    assert max(sizes[1:]) - min(sizes[1:]) < 500


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    base = tmp_path_factory.mktemp("export") / "served"
    export(base, TARGETS, version=1)
    return base


def corpus(features, identifiers):
    return TargetCorpus(features, identifiers=identifiers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"added": corpus(FRESH[:1], ["target 3"])},
            "to be added is there already. Received: b'target 3'",
        ),
        ({"removed": ["nobody"]}, "to be removed is unknown. Received: b'nobody'"),
        ({"updated": corpus(FRESH[:1], ["nobody"])}, "to be updated is unknown. Received: b'nobody'"),
        (
            {"removed": ["target 3"], "updated": corpus(FRESH[:1], ["target 3"])},
            "once. Received: b'target 3', updated and removed",
        ),
        ({"removed": [3]}, "removed must be identifiers like .* strings. Received: "),
        ({"added": FRESH}, "added must be a TargetCorpus. Received: "),
        (
            {"added": corpus({"text": FRESH[:1]}, ["new"])},
            r"features that the export encodes: .*target.* Received: \['text'\]",
        ),
        (
            {"added": corpus(FRESH[:1, :3], ["new"])},
            r"features that the export encodes: .* Received: target of float32 \[1, 3\]",
        ),
        (
            {"added": corpus(np.full([1, DIM], np.inf, np.float32), ["new"])},
            "encodings of targets must be finite .* row 0",
        ),
        ({"removed": names(N)[9:]}, "k is at most .* Received: k=10 with 9 targets left"),
        ({"index": "flat"}, "index must be one of exact, tree. Received: index='flat'"),
    ],
)
def test_changes_that_cannot_be_made_are_refused_and_nothing_is_written(served, changes, message):
    with pytest.raises(ValueError, match=message):
        refresh_export(served, **changes)
    assert [path.name for path in served.iterdir()] == ["1"]


def test_what_is_no_export_is_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no export. Received: .*nowhere"):
        refresh_export(tmp_path / "nowhere")
    plain = export(tmp_path / "plain", TARGETS)
    with pytest.raises(ValueError, match="without versions .* Received: .*plain.* Name an output"):
        refresh_export(plain, removed=["target 1"])
    module = tf.Module()
    tf.saved_model.save(module, str(tmp_path / "other" / "1"))
    with pytest.raises(ValueError, match="no export with a model card. Received: "):
        refresh_export(tmp_path / "other")


def test_a_version_written_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    base = tmp_path / "served"
    export(base, TARGETS, version=1)
    save = tf.saved_model.save

    def overtaken(module, folder, **kwargs):
        save(module, folder, **kwargs)
        (base / "2").mkdir()
        (base / "2" / "saved_model.pb").touch()

    monkeypatch.setattr(tf.saved_model, "save", overtaken)
    with pytest.raises((OutputError, OSError)):
        refresh_export(base, removed=["target 1"])
    assert sorted(path.name for path in base.iterdir()) == ["1", "2"]
    assert (base / "2" / "saved_model.pb").stat().st_size == 0
