"""`tf-dynidx bench drift`: what it measures, against direct computations, and how it is run."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.reference import clustered, exact_softmax
from tf_dynidx.cli.bench import drift
from tf_dynidx.cli.main import main
from tf_dynidx.index import DynamicIndex

WORDS = ["red", "green", "blue", "small", "large", "round", "flat", "old", "new", "soft", "hard", "wet"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Names of files of a small corpus: targets are triples of words, queries two of them."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 3, replace=False)) for _ in range(200)]
    lines = {
        "targets": [{"id": str(row), "text": text} for row, text in enumerate(texts)],
        "train": [
            {"query": " ".join(text.split()[:2]), "target": str(row)} for row, text in enumerate(texts)
        ],
    }
    lines["test"] = lines["train"][:20]
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [part for name in lines for part in (f"--{name}", str(folder / f"{name}.jsonl"))]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(drift, "SIZES", (300, 3000))
    monkeypatch.setattr(drift, "ROUNDS", 1)
    monkeypatch.setattr(drift, "SNAPSHOTS", 2)
    some = drift.followers

    def fewer(encodings, seed):
        for each in some(encodings, seed):
            if each.name in ("static", "write-back 100%", "both, 100%, full"):
                yield each

    monkeypatch.setattr(drift, "followers", fewer)


def test_training_and_refreshes_are_measured(files, small, untimed, uncompiled, tmp_path, capsys):
    report = tmp_path / "report.json"
    arguments = ["--steps", "12", "--max-rows", "3000", "--report", str(report)]
    assert main(["bench", "drift", *files, *arguments]) == 0
    printed = capsys.readouterr().out
    tables = json.loads(report.read_text())["tables"]
    assert set(tables) == {"training", "summary", "refresh", "refresh_slope"}
    training = {(row["step"], row["index"]): row for row in tables["training"]}
    assert {step for step, _ in training} == {6, 12} and len(training) == 6
    for row in training.values():
        assert 0.0 <= row["total_variation"] <= 1.0 and row["relative_error"] >= 0.0
    last = {name: row for (step, name), row in training.items() if step == 12}
    assert last["static"]["relative_error"] > last["both, 100%, full"]["relative_error"]
    assert last["static"]["reported_error"] is None and last["static"]["refresh_every"] is None
    assert {row["targets"] for row in tables["refresh"]} == {300, 3000}
    for row in tables["refresh"]:
        assert row["seconds"] > 0.0 and row["ratio"] > 0.0
    assert {row["form"] for row in tables["refresh_slope"]} == {"full", "lazy"}
    for title in ("Drift", "Refresh"):
        assert title in printed


def test_softmax_is_that_of_enumeration():
    rng = np.random.default_rng(0)
    queries, table = clustered(rng, 4, 6), clustered(rng, 50, 6)
    expected = exact_softmax(queries, table, 7.0)
    np.testing.assert_allclose(drift._softmax(queries @ table.T, 7.0), expected, atol=1e-5)


def test_follower_writes_its_share_back():
    rng = np.random.default_rng(0)
    encodings = clustered(rng, 600, 8)
    moved = (2.0 * encodings).astype(np.float32)
    rows = np.arange(400, dtype=np.int32)
    built = DynamicIndex(8, 600)
    built.build(encodings)
    share = {}
    for rate in (0.0, 0.1, 1.0):
        follower = drift.Follower("one", built, rate, False, seed=0)
        follower.follow(rows, moved[rows], None)
        found = follower.index.read(tf.range(600)).numpy()
        share[rate] = np.mean(np.abs(found - moved).max(axis=1)[:400] < 1e-5)
        np.testing.assert_array_equal(found[400:], encodings[400:])
    assert share[0.0] == 0.0 and 0.03 < share[0.1] < 0.2 and share[1.0] == 1.0


def test_random_encoder_encodes_all_as_it_does_some():
    features = clustered(np.random.default_rng(0), 500, drift.DIM)
    encode, encode_all = drift._random_encoder(features, seed=0)
    some = np.array([3, 499, 7], np.int32)
    everything = encode_all()
    assert everything.shape == (500, drift.DIM)
    np.testing.assert_allclose(encode(some), everything[some], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(everything, axis=1), 1.0, atol=1e-5)


def test_part_of_the_files_is_refused(files, capsys):
    assert main(["bench", "drift", *files[:4]]) == 1
    assert "Give all three, or none" in capsys.readouterr().err
