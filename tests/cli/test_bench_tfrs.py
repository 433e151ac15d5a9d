"""`tf-dynidx bench tfrs`: what it measures, against direct computations, and how it is run."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tests.reference import clustered
from tf_dynidx.cli.bench import tfrs_evaluation, tfrs_training
from tf_dynidx.cli.data import read_all
from tf_dynidx.cli.main import main
from tf_dynidx.tfrs import TreeTopK

USERS, ITEMS, GROUPS = 60, 200, 10


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Names of files of users who like items of their own number, modulo 10."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    liked = [
        rng.permutation(np.arange(user % GROUPS, ITEMS, GROUPS)).astype(str) for user in range(USERS)
    ]
    lines = {
        "targets": [{"id": str(row), "text": ""} for row in range(ITEMS)],
        "train": [{"query": f"u{u}", "targets": list(each[:12])} for u, each in enumerate(liked)],
        # One user is unknown.
        "test": [{"query": f"u{u}", "targets": list(each[12:])} for u, each in enumerate(liked)]
        + [{"query": "nobody", "target": "7"}],
    }
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [part for name in lines for part in (f"--{name}", str(folder / f"{name}.jsonl"))]


@pytest.fixture
def small(monkeypatch):
    for module, name, value in [
        (tfrs_evaluation, "QUERIES", 64),
        (tfrs_evaluation, "BATCHES", (8, 32)),
        (tfrs_evaluation, "ROUNDS", 1),
        (tfrs_evaluation, "BUDGETS", (None, 1.0)),
        (tfrs_training, "SIDES", [s._replace(batch=128) for s in tfrs_training.SIDES]),
    ]:
        monkeypatch.setattr(module, name, value)


def test_both_parts_are_measured(files, small, tmp_path, capsys):
    report = tmp_path / "report.json"
    arguments = ["--sizes", "1500", "--seconds", "2", "--seeds", "1", "--report", str(report)]
    assert main(["bench", "tfrs", *files, *arguments]) == 0
    printed = capsys.readouterr().out
    assert "Evaluation" in printed and "Training" in printed
    tables = json.loads(report.read_text())["tables"]

    brute, streaming, tree, whole = tables["evaluation"]
    assert (brute["layer"], streaming["layer"]) == ("BruteForce", "Streaming")
    assert (tree["layer"], whole["layer"]) == ("TreeTopK", "TreeTopK, 1500 scored")
    # What is exact says the same, whatever it is called.
    assert brute["difference"] == streaming["difference"] == whole["difference"] == 0.0
    assert 0.0 < brute["top_1"] < brute["top_10"] < brute["top_100"] < 1.0
    assert tree["difference"] == max(
        abs(tree[f"top_{k}"] - brute[f"top_{k}"]) for k in (1, 5, 10, 50, 100)
    )
    assert brute["times_BruteForce_8"] == streaming["times_Streaming_32"] == 1.0
    for row in tables["evaluation"]:
        assert row["times_Streaming_8"] == pytest.approx(streaming["ms_8"] / row["ms_8"])

    assert [row["task"] for row in tables["training"]] == [side.name for side in tfrs_training.SIDES]
    for row, mean in zip(tables["training"], tables["training_summary"], strict=True):
        assert row["steps"] > 0 and row["seconds"] >= 2.0
        assert 0.0 < row["top_20"] <= row["top_100"] <= 1.0
        assert 0.0 < row["recall@20"] <= 1.0 and 0.0 < row["ndcg@20"] <= 1.0
        assert mean["top_20"] == row["top_20"] and mean["spread_top_20"] is None


def test_steps_may_be_the_budget(files, small, tmp_path, monkeypatch):
    monkeypatch.setattr(tfrs_training, "SIDES", tfrs_training.SIDES[:1])
    rates = []

    class Watched(tfrs_training._Budget):
        def on_train_batch_begin(self, batch, logs=None):
            super().on_train_batch_begin(batch, logs)
            rates.append(float(self.model.optimizer.learning_rate))

    monkeypatch.setattr(tfrs_training, "_Budget", Watched)
    report = tmp_path / "report.json"
    arguments = ["--parts", "training", "--steps", "4", "--seeds", "2", "--report", str(report)]
    assert main(["bench", "tfrs", *files, *arguments]) == 0
    tables = json.loads(report.read_text())["tables"]
    one, two = tables["training"]
    assert (one["seed"], two["seed"]) == (0, 1) and one["steps"] == two["steps"] == 4
    np.testing.assert_allclose(rates, 2 * [0.03, 0.0225, 0.015, 0.0075], rtol=1e-5)
    (mean,) = tables["training_summary"]
    both = [one["recall@20"], two["recall@20"]]
    assert mean["recall@20"] == pytest.approx(np.mean(both))
    assert mean["spread_recall@20"] == pytest.approx(np.std(both, ddof=1))


def test_positives_have_the_ranks_that_the_docs_say(monkeypatch):
    monkeypatch.setattr(tfrs_evaluation, "RANKS", 50)
    rng = np.random.default_rng(0)
    targets, queries = clustered(rng, 400, 8), clustered(rng, 900, 8)
    rows = tfrs_evaluation.positives(queries, targets, seed=3)
    scores = queries @ targets.T
    ranks = 1 + np.sum(scores > scores[np.arange(900), rows][:, None] + 1e-6, axis=1)
    assert ranks.min() == 1 and ranks.max() == 50
    for k in (1, 5, 20):
        assert np.mean(ranks <= k) == pytest.approx(np.log(k + 1) / np.log(51), abs=0.05)


def test_accuracies_and_recalls_are_those_of_enumeration(files, monkeypatch):
    monkeypatch.setattr(tfrs_training, "KS", (5, 20))
    data = tfrs_training._Data(*read_all(*files[1::2]), seed=0)
    tf.keras.utils.set_random_seed(1)
    towers = tfrs_training.tower(data.queries), tfrs_training.tower(data.identifiers)
    items = towers[1](tf.constant(data.identifiers)).numpy()
    np.testing.assert_allclose(np.linalg.norm(items, axis=1), 1.0, atol=1e-5)
    scores = towers[0](tf.constant(data.test.queries)).numpy() @ items.T
    rank = np.argsort(np.argsort(-scores, axis=1), axis=1)
    hits = [rank[query, each] for query, rows in enumerate(data.test.positives) for each in rows]
    found = tfrs_training._accuracies(towers, data)
    assert found == {
        "top_5": pytest.approx(np.mean(np.array(hits) < 5)),
        "top_20": pytest.approx(np.mean(np.array(hits) < 20)),
    }
    shares = []
    for query, (rows, seen) in enumerate(zip(data.test.positives, data.trained_on, strict=True)):
        left_in = np.delete(np.arange(ITEMS), seen)
        best = left_in[np.argsort(-scores[query, left_in])][:20]
        shares.append(np.isin(rows, best).mean())
    assert tfrs_training._recalls(towers, data)["recall@20"] == pytest.approx(np.mean(shares))
    assert len(data.trained_on[data.test.queries.index("nobody")]) == 0
    assert len(data.trained_on[data.test.queries.index("u1")]) == 12


def test_examples_and_how_often_they_come(files):
    targets, pairs, test = read_all(*files[1::2])
    data = tfrs_training._Data(targets, pairs, test, seed=0)
    batches = list(data.dataset(60, seed=0).take(12).as_numpy_iterator())  # one epoch
    seen = sorted(
        (q, t) for each in batches for q, t in zip(each["query"], each["target"], strict=True)
    )
    expected = sorted(
        (query.encode(), str(row).encode())
        for query, rows in zip(pairs.queries, pairs.positives, strict=True)
        for row in rows
    )
    assert seen == expected
    times = {name: sum(target == name for _, target in seen) for _, name in seen}
    for name, probability in zip(batches[0]["target"], batches[0]["probability"], strict=True):
        assert probability == pytest.approx(times[name] / len(seen))


def test_layers_that_are_compared_are_theirs_and_the_tree():
    targets = clustered(np.random.default_rng(0), 2000, 8)
    made = {name: make() for name, make in tfrs_evaluation.layers(targets).items()}
    theirs = tfrs.layers.factorized_top_k
    kinds = [theirs.BruteForce, theirs.Streaming, TreeTopK, TreeTopK]
    assert [type(layer) for layer in made.values()] == kinds
    assert made["TreeTopK"].tree.budget is None
    assert made["TreeTopK, 100 scored"].tree.budget == 100  # no fewer than are asked for


@pytest.mark.parametrize(
    ("pick", "more", "message"),
    [
        (slice(0, 4), [], "Give all three, or none"),
        (slice(0, 6), ["--parts", "evaluation"], "with them. Give both, or neither"),
        (slice(0, 0), ["--parts", "training"], "without them. Give both, or neither"),
    ],
)
def test_what_does_not_go_together_is_refused(files, tmp_path, capsys, pick, more, message):
    report = tmp_path / "report.json"
    assert main(["bench", "tfrs", *files[pick], *more, "--report", str(report)]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert not report.exists()


def test_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "tfrs", "--parts", "serving"])
    assert "must be of evaluation, training" in capsys.readouterr().err


def test_keras_3_is_refused_before_any_work(files, tmp_path):
    report = tmp_path / "report.json"
    # A file that is not there: it has not been looked for yet.
    arguments = ["bench", "tfrs", *files[:-1], str(tmp_path / "absent.jsonl"), "--report", str(report)]
    code = f"import sys\nfrom tf_dynidx.cli.main import main\nsys.exit(main({arguments!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TF_USE_LEGACY_KERAS": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == "" and not report.exists()
    assert "set TF_USE_LEGACY_KERAS=1 before TensorFlow is imported" in done.stderr
    assert "Received: Keras 3" in done.stderr
