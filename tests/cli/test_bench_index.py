"""`tf-dynidx bench index`: what it measures, against direct computations, and how it is run."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tf_dynidx.cli import encodings
from tf_dynidx.cli.bench import index as bench_index
from tf_dynidx.cli.bench import large, measure, peers, rivals, sampler, search, speed, tables, upkeep
from tf_dynidx.cli.main import main

# Encodings.


def cosines(vectors, others):
    """Of each vector with its nearest among others that are not itself."""
    scores = vectors @ others.T
    return np.where(scores > 1 - 1e-5, -1.0, scores).max(axis=1)


@pytest.mark.parametrize("number", [1000, 30_000])
def test_clustered_encodings_have_near_neighbours(number):
    made = encodings.clustered(number, 64, 200)
    assert made.targets.shape == (number, 64) and made.queries.shape == (200, 64)
    for vectors in (made.targets[:200], made.queries):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        low, median, high = np.quantile(cosines(vectors, made.targets), [0.1, 0.5, 0.9])
        assert 0.65 < low < median < 0.9 and 0.7 < median < high < 0.95


def test_clustered_encodings_are_clusters_of_clusters():
    made = encodings.clustered(10_000, 64, 200)
    scores = made.queries @ made.targets.T
    # A hundred targets of a direction, ten of which are of the same centre, on average.
    assert 3 < np.mean(np.sum(scores > 0.65, axis=1)) < 20
    assert 50 < np.mean(np.sum(scores > 0.3, axis=1)) < 400


def test_clustered_encodings_are_reproducible(monkeypatch):
    monkeypatch.setattr(encodings, "_BLOCK", 100)
    first, second = (encodings.clustered(250, 8, 20, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.targets, second.targets)
    np.testing.assert_array_equal(first.queries, second.queries)
    half = encodings.clustered(250, 8, 20, seed=3, dtype="float16")
    assert half.targets.dtype == np.float16 and half.queries.dtype == np.float32
    np.testing.assert_array_equal(half.targets, first.targets.astype(np.float16))
    other = encodings.clustered(250, 8, 20, seed=4)
    assert np.abs(other.targets - first.targets).max() > 0.1
    # No block repeats another.
    assert len(np.unique(first.targets, axis=0)) == 250


def test_a_step_is_of_its_length():
    rng = np.random.default_rng(0)
    vectors = reference.unit(reference.gaussian(rng, 500, 64))
    after = encodings.moved(vectors, rng, 0.5)
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1.0, atol=1e-5)
    assert np.mean(np.sum(vectors * after, axis=1)) == pytest.approx(1.25**-0.5, abs=0.01)


def archive(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_encodings_are_read(tmp_path):
    rng = np.random.default_rng(0)
    targets, queries = rng.normal(size=[200, 8]), rng.normal(size=[5, 8]).astype(np.float16)
    read = encodings.read(archive(tmp_path / "e.npz", targets=targets, queries=queries, more=[1]))
    assert read.targets.dtype == read.queries.dtype == np.float32
    np.testing.assert_array_equal(read.targets, targets.astype(np.float32))
    np.testing.assert_array_equal(read.queries, queries)


GOOD = np.random.default_rng(0).normal(size=[200, 8])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"targets": GOOD}, "needs the arrays 'targets' and 'queries'. Received: ['targets']"),
        ({"targets": GOOD, "queries": GOOD[:, :7]}, "one dimension. Received: 8 and 7"),
        ({"targets": GOOD, "queries": GOOD[0]}, "Received: float64 of shape [8]"),
        ({"targets": GOOD, "queries": GOOD[:0]}, "Received: float64 of shape [0, 8]"),
        ({"targets": np.arange(800).reshape(200, 4), "queries": GOOD}, "Received: int64"),
        ({"targets": GOOD, "queries": np.full([3, 8], np.nan)}, "NaN or infinity in 3 of 3 rows"),
        ({"targets": GOOD[:100], "queries": GOOD}, "at least 128 targets"),
        ({"targets": np.ones([200, 8]), "queries": GOOD}, "not all alike"),
    ],
)
def test_unusable_encodings_are_refused(tmp_path, capsys, arrays, message):
    path = archive(tmp_path / "e.npz", **arrays)
    assert main(["bench", "index", "--encodings", path]) == 1
    complaint = capsys.readouterr().err
    assert message in complaint and "e.npz" in complaint and "Received" in complaint


@pytest.mark.parametrize("content", [None, b"", b"text", "array", "broken"])
def test_a_file_that_is_no_archive_is_refused(tmp_path, capsys, content):
    path = tmp_path / "e.npz"
    if content == "array":
        with open(path, "wb") as file:
            np.save(file, GOOD)
    elif content == "broken":
        archive(path, targets=GOOD, queries=GOOD)
        path.write_bytes(path.read_bytes()[:-1000])
    elif content is not None:
        path.write_bytes(content)
    assert main(["bench", "index", "--encodings", str(path)]) == 1
    complaint = capsys.readouterr().err
    assert "e.npz" in complaint and "Received" in complaint and "archive" in complaint


# Metrics.


def test_bias_and_rmse_are_those_of_the_set_means():
    rng = np.random.default_rng(0)
    means, expected = rng.normal(size=[30, 4, 8]), rng.normal(size=[4, 8])
    distance = rng.uniform(1.0, 2.0, size=4)
    errors = sampler.set_errors(means, expected, distance)
    for query in range(4):
        off = [means[repeat, query] - expected[query] for repeat in range(30)]
        bias = np.linalg.norm(np.mean(off, axis=0)) / distance[query]
        rmse = np.mean([np.linalg.norm(each) ** 2 for each in off]) ** 0.5 / distance[query]
        assert errors.bias[query] == pytest.approx(bias)
        assert errors.rmse[query] == pytest.approx(rmse)


@pytest.fixture(scope="module")
def small():
    made = encodings.clustered(400, 8, 10)
    return made.queries, made.targets


def test_softmax_is_exact_and_its_draws_are_unbiased(small):
    queries, targets = small
    beta, samples, repeats = 5.0, 16, 1000
    exact = sampler.softmax(queries, targets, beta, samples, repeats)
    probabilities = reference.exact_softmax(queries, targets, beta)
    mean = probabilities @ targets
    np.testing.assert_allclose(exact.mean, mean, atol=1e-6)
    np.testing.assert_allclose(
        exact.log_partition, reference.log_partition(queries, targets, beta), atol=1e-5
    )
    distance = np.linalg.norm(mean - targets.mean(axis=0), axis=1)
    np.testing.assert_allclose(exact.distance, distance, rtol=1e-5)
    variance = [
        p @ np.sum((targets - m) ** 2, axis=1) for p, m in zip(probabilities, mean, strict=True)
    ]
    rmse = np.sqrt(np.array(variance) / samples) / distance
    np.testing.assert_allclose(exact.iid.rmse, rmse, rtol=0.1)
    # Of unbiased draws, the bias that is left is the noise of so many sets.
    assert np.all(exact.iid.bias < 3 * rmse / repeats**0.5)


def test_errors_of_a_sampler_that_is_known(small):
    """Uniform draws: their mean is the mean target, whose distance everything is relative to."""
    queries, targets = small
    repeats, samples = 300, 16
    rng = np.random.default_rng(0)
    exact = sampler.softmax(queries, targets, 5.0, samples, repeats)
    sizes = []

    def draw(batch):
        sizes.append(len(batch))
        log_partition = reference.log_partition(batch, targets, 5.0) + 0.25
        return rng.integers(len(targets), size=[len(batch), samples]), log_partition

    errors, off = sampler.draw_errors(draw, queries, targets, exact, repeats)
    assert set(sizes) == {measure.BATCH} and len(sizes) == -(-len(queries) * repeats // measure.BATCH)
    np.testing.assert_allclose(off, 0.25, atol=1e-3)
    np.testing.assert_allclose(errors.bias, 1.0, atol=0.15)
    variance = np.mean(np.sum((targets - targets.mean(axis=0)) ** 2, axis=1)) / samples
    np.testing.assert_allclose(errors.rmse, np.sqrt(1 + variance / exact.distance**2), rtol=0.1)


def test_a_perfect_sampler_is_as_good_as_independent_draws(small):
    queries, targets = small
    rng = np.random.default_rng(0)
    exact = sampler.softmax(queries, targets, 5.0, 16, 300)

    def draw(batch):
        probabilities = reference.exact_softmax(batch, targets, 5.0)
        rows = [rng.choice(len(targets), 16, p=each) for each in probabilities]
        return np.array(rows), reference.log_partition(batch, targets, 5.0)

    errors, off = sampler.draw_errors(draw, queries, targets, exact, 300)
    np.testing.assert_allclose(errors.rmse, exact.iid.rmse, rtol=0.2)
    assert np.median(errors.bias) < 2 * np.median(exact.iid.bias)
    assert off.max() < 1e-4


def test_kth_scores_are_those_of_a_sort(monkeypatch, small):
    queries, targets = small
    monkeypatch.setattr(measure, "_BLOCK", 130)
    expected = np.sort(queries @ targets.T, axis=1)[:, -7]
    np.testing.assert_allclose(measure.kth_scores(queries, targets, 7), expected, atol=1e-6)


def test_recall_counts_equals_and_counts_each_row_once():
    targets = np.array([[1.0], [0.9], [0.8], [0.8 - 5e-7], [0.8 - 5e-6], [0.1]], np.float32)
    queries = np.ones([1, 1], np.float32)
    kth = measure.kth_scores(queries, targets, 3)
    assert kth == pytest.approx(0.8)
    for rows, expected in [
        ([0, 1, 2], 1.0),
        ([3, 0, 1], 1.0),  # as good as row 2
        ([0, 1, 4], 2 / 3),
        ([0, 0, 0], 1 / 3),
        ([0, -1, -1], 1 / 3),
        ([5, -1, 4], 0.0),
    ]:
        assert measure.recall(np.array([rows]), queries, targets, kth) == pytest.approx(expected)


def test_the_budget_is_the_largest_within_the_cost():
    class Index:
        size = 1000

        def search_cost(self, k, budget):
            return 50.0 + 16 * -(-budget // 16)  # in whole leaves

    assert search.budget_within(Index(), 100, 100) is None
    assert search.budget_within(Index(), 100, 50 + 112) == 112
    assert search.budget_within(Index(), 100, 50 + 127) == 112
    assert search.budget_within(Index(), 100, 10_000) == 1000


def test_calls_take_turns_and_the_first_is_not_timed():
    calls = []
    times = measure.alternating({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert calls == list("abababab")
    assert set(times) == {"a", "b"} and all(taken >= 0 for taken in times.values())


def test_batches_are_of_one_size_and_keep_order():
    queries = np.arange(7, dtype=np.float32)[:, None]
    sizes = []

    def call(batch):
        sizes.append(len(batch))
        return batch * 2

    np.testing.assert_array_equal(measure.in_batches(call, queries, 3), queries * 2)
    assert sizes == [3, 3, 3]
    assert measure.full_batch(queries, 20).shape == (20, 1)


def test_the_exact_way_finds_the_best(monkeypatch, small):
    queries, targets = small
    monkeypatch.setattr(speed, "_BLOCK", 150)
    top = speed.exact_top(tf.constant(targets), 9, noise=False)
    scores, rows = top(tf.constant(queries), 5.0)
    expected, _ = reference.top_k(5.0 * queries @ targets.T, 9)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_allclose(
        np.take_along_axis(5.0 * queries @ targets.T, rows.numpy(), axis=1), expected, atol=1e-5
    )


def test_the_exact_way_draws_from_the_softmax(monkeypatch, small):
    monkeypatch.setattr(speed, "_BLOCK", 20)
    tf.random.set_seed(0)
    query, targets = small[0][:1], small[1][:50]
    top = speed.exact_top(tf.constant(targets), 3, noise=True)
    rows = top(tf.constant(np.repeat(query, 20_000, axis=0)), 5.0)[1].numpy()
    assert all(len(set(each)) == 3 for each in rows[:100])
    counts = np.bincount(rows[:, 0], minlength=50)
    probabilities = reference.exact_softmax(query, targets, 5.0)[0]
    expected = reference.expected_total_variation(np.random.default_rng(0), 20_000, probabilities)
    assert reference.total_variation(counts, probabilities) < 2 * expected


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (1_000_000, [10_000, 100_000, 1_000_000]),
        (10_000_000, [10_000, 100_000, 1_000_000, 10_000_000]),
        (250_000, [25_000, 250_000]),
        (5_000, [500, 5_000]),
        (1_000, [128, 1_000]),
    ],
)
def test_growth_goes_up_tenfold(largest, expected):
    assert speed.sizes(largest) == expected


def test_a_step_moves_some_rows_in_place():
    targets = encodings.clustered(300, 16, 1).targets
    before = targets.copy()
    rows, fresh = upkeep.step(targets, np.random.default_rng(0), 30, 0.1)
    assert len(set(rows.tolist())) == 30
    np.testing.assert_array_equal(targets[rows], fresh)
    kept = np.setdiff1d(np.arange(300), rows)
    np.testing.assert_array_equal(targets[kept], before[kept])
    cosine = np.sum(before[rows] * fresh, axis=1)
    assert 0.98 < cosine.min() < cosine.max() < 0.9999


def test_peak_memory_sees_what_has_been_freed_again():
    with measure.PeakMemory() as memory:
        np.ones(50_000_000, np.float32).sum()
    if memory.since_start:
        assert memory.peak > 200_000_000
    else:
        assert memory.peak - memory.before > 150_000_000


def test_inverted_lists_cost_what_they_scan():
    faiss = pytest.importorskip("faiss", exc_type=ImportError)
    made = encodings.clustered(2000, 16, 50)
    index = rivals.ivf_flat(faiss, made.targets, 20)
    costs = rivals.ivf_costs(index, made.queries)
    assert len(costs) == 20 and costs[-1] == pytest.approx(20 + 2000)
    centroids = index.quantizer.reconstruct_n(0, 20)
    of_target = np.argmax(made.targets @ centroids.T, axis=1)
    order = np.argsort(-made.queries @ centroids.T, axis=1)
    scanned = np.mean([np.isin(of_target, lists[:3]).sum() for lists in order])
    assert costs[2] == pytest.approx(20 + scanned)
    # All lists probed is an exact search.
    rows = rivals.ivf_search(index, 20, 10)(made.queries)
    kth = measure.kth_scores(made.queries, made.targets, 10)
    assert measure.recall(rows, made.queries, made.targets, kth) == 1.0


def test_what_cannot_be_imported_is_not_there(monkeypatch):
    def fails(name):
        raise RuntimeError("a binary of another release")

    assert rivals.load("no_such_module_anywhere") is None
    monkeypatch.setattr(rivals.importlib, "import_module", fails)
    assert rivals.load("json") is None
    assert sys.modules["tensorflow"] is tf


def test_tables_are_aligned_and_short(capsys):
    table = tables.Tables({"one": "A title"})
    for name, value in [("a", 1234567), ("bcd", 0.12345), ("e", None), ("f", 1e-5)]:
        table.add(measure.Row("one", {"name": name, "some_value": value}))
    table.add(measure.Row("one", {"name": "g", "some_value": np.float64("nan")}))
    table.add(measure.Note("A note"))
    table.print_new()
    table.print_new()
    assert capsys.readouterr().out.splitlines() == [
        "A note",
        "",
        "A title",
        "name  some value",
        "a      1,234,567",
        "bcd        0.123",
        "e              -",
        "f        1.0e-05",
        "g              -",
    ]
    assert table.rows["one"][-1]["some_value"] is None
    assert table.notes == ["A note"]


# The command.


@pytest.fixture
def quick(monkeypatch):
    """Everything small: what is printed means nothing."""
    for module, name, value in [
        (sampler, "BETAS", (20.0, 100.0)),
        (sampler, "REPEATS", 5),
        (sampler, "QUERIES", 20),
        (search, "COST_SHARES", (0.01, 10.0)),
        (search, "QUERIES", 100),
        (speed, "ROUNDS", 1),
        (upkeep, "ROUNDS", 1),
        (upkeep, "DRIFT_ROUNDS", 2),
        (upkeep, "BETAS", (20.0,)),
        (peers, "ROUNDS", 1),
        (peers, "COST_SHARES", (10.0,)),
        (large, "ROUNDS", 1),
    ]:
        monkeypatch.setattr(module, name, value)


def run(tmp_path, *arguments, status=0):
    """The report of a run."""
    path = tmp_path / "report.json"
    assert main(["bench", "index", "--report", str(path), *arguments]) == status
    return json.loads(path.read_text())


def test_random_encodings_alone(tmp_path, quick, capsys):
    report = run(tmp_path, "--max-rows", "1000", "--parts", "sampler,search", "--seed", "5")
    assert report["settings"]["seed"] == 5 and report["settings"]["parts"] == ["sampler", "search"]
    assert report["interrupted"] is False
    assert [row["beta"] for row in report["tables"]["sampler"]] == [20.0, 100.0]
    for row in report["tables"]["sampler"]:
        assert row["encodings"] == "clustered" and row["targets"] == 1000 and row["queries"] == 20
        assert 0 < row["iid_rmse"] < 1 and 0 < row["rmse"] < 1 and row["cost"] > 0
        assert row["rmse_ratio"] == pytest.approx(row["rmse"] / row["iid_rmse"])
        assert row["bias_difference"] == pytest.approx(row["bias"] - row["iid_bias"])
        assert row["cost_share"] == pytest.approx(row["cost"] / 1000)
    scarce, ample = report["tables"]["search"]
    # Ten dot products do not give a hundred results; ten for each row are more than all rows take.
    assert scarce["recall"] is None
    assert ample["recall"] > 0.9 and ample["cost"] <= 10_000
    printed = capsys.readouterr().out
    assert "No real encodings were given" in printed
    assert "rmse ratio" in printed and "recall" in printed


def test_encodings_of_a_file(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(sampler, "BETAS", (20.0,))
    made = encodings.clustered(300, 16, 30, seed=1)
    path = archive(tmp_path / "e.npz", targets=made.targets, queries=made.queries)
    report = run(tmp_path, "--encodings", path, "--parts", "sampler")
    rows = report["tables"]["sampler"]
    assert [(row["encodings"], row["targets"]) for row in rows] == [("real", 300), ("clustered", 300)]
    assert report["notes"] == []


def data(folder):
    targets = [{"id": f"t{i}", "text": f"thing {i} of {i % 7}"} for i in range(150)]
    pairs = [{"query": f"the {i} of {i % 7}", "target": f"t{i}"} for i in range(150)]
    arguments = []
    for name, records in [("targets", targets), ("train", pairs * 4), ("test", pairs[:40])]:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        arguments += [f"--{name}", str(path)]
    return arguments


def test_encodings_of_a_model_trained_on_pairs(tmp_path, quick, untimed, uncompiled, monkeypatch):
    monkeypatch.setattr(sampler, "BETAS", (20.0,))
    report = run(tmp_path, *data(tmp_path), "--steps", "3", "--parts", "sampler")
    rows = report["tables"]["sampler"]
    assert [(row["encodings"], row["targets"]) for row in rows] == [("real", 150), ("clustered", 150)]


def test_speed_and_upkeep(tmp_path, quick):
    report = run(tmp_path, "--max-rows", "1000", "--parts", "speed,upkeep")["tables"]
    assert [row["side"] for row in report["speed"]][0] == "sample()"
    assert report["speed"][0]["ratio"] == 1.0 and all(row["seconds"] > 0 for row in report["speed"])
    assert [row["targets"] for row in report["growth"]] == [128, 1000]
    assert report["growth"][0]["ratio"] == 1.0
    slope = report["growth_slope"][0]
    expected = np.log(report["growth"][1]["ratio"]) / np.log(1000 / 128)
    # Through two points there is one line.
    assert slope["least_squares"] == pytest.approx(expected, abs=1e-6)
    assert slope["end_to_end"] == pytest.approx(expected, abs=1e-6)

    times = {row["work"]: row for row in report["upkeep"]}
    assert times["build"]["share_of_build"] == 1.0 and times["build"]["rows"] == 1000
    together = times["update and repair"]
    assert together["rows"] == 10
    both = times["update"]["seconds"] + times["repair"]["seconds"]
    assert together["seconds"] == pytest.approx(both)
    figures = {row["figure"]: row for row in report["drift"]}
    assert figures["cosine to the start"]["followed"] == pytest.approx(0.7, abs=0.05)
    for name in ("sampler RMSE, beta 20", "recall@100, default budget"):
        row = figures[name]
        assert row["followed"] > 0 and row["fresh"] > 0
        assert row["ratio"] == pytest.approx(row["followed"] / row["fresh"])


def test_large(tmp_path, quick):
    report = run(tmp_path, "--parts", "large", "--rows", "1000")
    operations = [row["operation"] for row in report["tables"]["large"]]
    assert operations[1] == "build" and operations[-1].startswith("repair")
    for row in report["tables"]["large"]:
        assert row["targets"] == 1000 and row["resident_peak_bytes"] > 1_000_000
    held = {row["part"]: row["bytes"] for row in report["tables"]["large_memory"]}
    # Every row is held, in float16.
    assert sum(held.values()) >= 1000 * large.DIM * 2
    assert any("recall@100" in note for note in report["notes"])


def test_peers(tmp_path, quick):
    pytest.importorskip("faiss", exc_type=ImportError)
    report = run(tmp_path, "--parts", "peers", "--max-rows", "1000")["tables"]
    libraries = {row["library"] for row in report["frontier"]}
    assert {"tf_dynidx", "Faiss IVF-Flat"} <= libraries
    for row in report["frontier"]:
        assert 0 <= row["recall@100"] <= 1 and row["queries_per_second"] > 0
    ways = {(row["library"], row["way"]) for row in report["following"]}
    assert ("tf_dynidx", "update and repair") in ways
    assert ("Faiss IVF-Flat", "added again to the same lists") in ways
    own = next(row for row in report["following"] if row["library"] == "tf_dynidx")
    assert own["recall_before"] > 0.9 and own["recall_after"] > 0.9


def test_without_peers(tmp_path, quick, monkeypatch, capsys):
    monkeypatch.setattr(rivals, "load", lambda name: None)
    report = run(tmp_path, "--parts", "search", "--max-rows", "1000")
    assert "ivf_best" not in report["tables"]["search"][0]
    assert any("Faiss" in note and "tf_dynidx[bench]" in note for note in report["notes"])
    capsys.readouterr()
    assert main(["bench", "index", "--parts", "sampler,peers"]) == 1
    captured = capsys.readouterr()
    assert "tf_dynidx[bench]" in captured.err and "Received" in captured.err
    assert captured.out == ""


def test_ctrl_c_keeps_what_has_been_measured(tmp_path, monkeypatch, capsys):
    def stopped(settings):
        yield measure.Row("speed", {"side": "sample()", "seconds": 1.5})
        raise KeyboardInterrupt

    monkeypatch.setattr(speed, "speed", stopped)
    report = run(tmp_path, "--parts", "speed,upkeep", status=130)
    assert report["interrupted"] is True
    assert report["tables"] == {"speed": [{"side": "sample()", "seconds": 1.5}]}
    captured = capsys.readouterr()
    assert "1.500" in captured.out
    assert "stopped; what has been measured is kept" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets", "t"], "together. Received: --targets alone"),
        (["--targets", "t", "--test", "t"], "Received: --targets --test alone"),
        (["--encodings", "e", "--train", "t"], "not both. Received: --train --encodings"),
        (["--encodings", "e", "--parts", "speed"], "for the parts sampler and search"),
        (
            ["--rows", "5000"],
            "--rows is the number of targets of the part large. Received: --rows 5000",
        ),
        (["--encodings", "absent.npz"], "absent.npz: cannot be read. Received: No such file"),
        (["--targets", "a", "--train", "b", "--test", "c"], "a"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    report = tmp_path / "report.json"
    assert main(["bench", "index", *arguments, "--report", str(report)]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert not report.exists()


def test_too_few_targets_to_train_on_are_refused(tmp_path, capsys):
    arguments = data(tmp_path)
    path = tmp_path / "targets.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:100]))
    assert main(["bench", "index", *arguments]) == 1
    complaint = capsys.readouterr().err
    assert "at least 128 targets" in complaint and "Received: 100" in complaint


def test_a_report_that_cannot_be_written_is_refused_before_any_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["bench", "index", "--report", str(tmp_path / "file" / "report.json")]) == 1
    captured = capsys.readouterr()
    assert "report.json" in captured.err and captured.out == ""


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--parts", "sampler,magic"], "must be of sampler, search"),
        (["--parts", ""], "must be of sampler, search"),
        (["--max-rows", "999"], "from 1000"),
        (["--rows", "many"], "Received: many"),
        (["--steps", "0"], "Received: 0"),
        (["--seed", "-1"], "Received: -1"),
    ],
)
def test_bad_options_are_refused(capsys, option, message):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "index", *option])
    assert stop.value.code == 2
    complaint = capsys.readouterr().err
    assert option[0] in complaint and message in complaint


def test_help_answers_without_tensorflow():
    code = (
        "import sys\nfrom tf_dynidx.cli.main import main\n"
        "try: main(['bench', 'index', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(part in done.stdout for part in bench_index.PARTS)
