import glob

import numpy as np
import pytest
import tensorflow as tf

from tests.callbacks.worlds import BATCH, STEPS, TARGETS, Indexed, make, train, weights
from tests.reference import exact_softmax, make_index
from tf_dynidx.callbacks import IndexMonitor
from tf_dynidx.callbacks.index_monitor import numbers
from tf_dynidx.callbacks.mining_time import MiningTime
from tf_dynidx.callbacks.summaries import write_histogram
from tf_dynidx.keras_world import keras
from tf_dynidx.miners import InBatch, Tree, Uniform
from tf_dynidx.variables import named_variables


class Seen(keras.callbacks.Callback):
    """Remembers the logs of each epoch."""

    def on_train_begin(self, logs=None):
        self.logs = []

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))


def written(folder):
    """What is in the event files: dict from name to a list of (step, plugin, value)."""
    found = {}
    for path in glob.glob(f"{folder}/**/*tfevents*", recursive=True):
        for event in tf.compat.v1.train.summary_iterator(path):
            for value in event.summary.value:
                plugin = value.metadata.plugin_data.plugin_name
                entry = (event.step, plugin, tf.make_ndarray(value.tensor))
                found.setdefault(value.tag, []).append(entry)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two epochs with a monitor, mined as users mine."""
    folder = tmp_path_factory.mktemp("logs")
    model = make(Tree(refresh_every=2))
    monitor, seen = IndexMonitor(log_dir=folder, batch_size=BATCH), Seen()
    history = train(model, monitor, seen)
    return {"model": model, "monitor": monitor, "seen": seen.logs, "history": history, "folder": folder}


def test_every_number_of_the_index_is_logged(run):
    stats = run["model"].miner.index.stats()
    last = {name: values[-1] for name, values in run["history"].items()}
    assert last["index/size"] == TARGETS
    for name, value in numbers(stats).items():
        assert last[f"index/{name}"] == pytest.approx(value), name
    assert last["index/levels/0/radius_median"] == stats["levels"][0]["radius_median"]
    assert last["index/full_encodes"] == 1
    assert last["index/staleness/relative_error"] > 0


def test_later_callbacks_and_the_history_see_the_same(run):
    for epoch, logs in enumerate(run["seen"]):
        assert logs["index/moved_rows"] == run["history"]["index/moved_rows"][epoch]
        assert logs["index/moved_rows"] == run["monitor"].history[epoch]["index/moved_rows"]
    assert [each["step"] for each in run["monitor"].history] == [STEPS, 2 * STEPS]


def test_what_is_asked_of_the_index_has_a_plausible_size(run):
    last = run["monitor"].history[-1]
    assert last["index/certificate_width"] >= 0
    assert 1 <= last["index/effective_targets"] <= TARGETS
    assert 1 <= last["index/effective_sample_size"] <= 64
    assert last["index/seconds_a_step"] > 0
    parts = [last[f"index/share_{part}"] for part in ("drawing", "writing", "refreshing")]
    assert all(0 < part < 50 for part in parts)
    assert last["index/share_mining"] == pytest.approx(sum(parts))


def test_all_of_it_is_written_for_tensorboard(run):
    found = written(run["folder"])
    for name, value in run["monitor"].history[-1].items():
        if name != "step":
            step, plugin, tensor = found[name][-1]
            assert (step, plugin) == (2 * STEPS, "scalars")
            assert tensor == pytest.approx(value, rel=1e-6)
    level = run["model"].miner.index.stats()["levels"][0]
    step, plugin, bins = found["index/levels/0/radii"][-1]
    assert (step, plugin) == (2 * STEPS, "histograms")
    assert bins[:, 2].sum() == level["nodes"]
    assert bins[-1, 1] == pytest.approx(level["radius_largest"], rel=1e-5)
    assert found["index/levels/1/children"][-1][2][:, 2].sum() >= 1


def test_histogram_counts_values_in_their_bins(tmp_path):
    values = np.random.default_rng(0).normal(size=100)
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        write_histogram("values", values, step=3)
        write_histogram("nothing", [], step=3)
    bins = written(tmp_path)["values"][0][2]
    assert bins[0, 0] == values.min() and bins[-1, 1] == values.max()
    for left, right, count in bins[:-1]:
        assert count == np.sum((values >= left) & (values < right))
    assert written(tmp_path)["nothing"][0][2][:, 2].sum() == 0


def test_effective_numbers_are_those_of_the_softmax():
    """All targets of a flat softmax, one of a peaked one; against enumeration between."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=[TARGETS, 6]).astype(np.float32)

    index = make_index(6, TARGETS)
    index.build(rows)
    monitor = IndexMonitor()
    monitor.set_model(make(InBatch()))
    monitor.on_train_begin()
    flat, between, peaked = (monitor._asked(index, beta) for beta in (1e-3, 1.0, 50.0))
    assert flat["effective_targets"] == pytest.approx(TARGETS, rel=0.01)
    assert flat["effective_sample_size"] > 40
    assert peaked["effective_targets"] < 2 and peaked["effective_sample_size"] < 3
    truth = 1 / np.sum(exact_softmax(rows, rows, 1.0) ** 2, axis=1)
    assert np.quantile(truth, 0.2) < between["effective_targets"] < np.quantile(truth, 0.8)


def test_watching_changes_nothing(run):
    """Neither weights nor anything that the miner keeps, timed parts included."""
    alone = make(Tree(refresh_every=2))
    train(alone)
    for a, b in zip(weights(run["model"]), weights(alone), strict=True):
        np.testing.assert_array_equal(a, b)
    watched = named_variables(run["model"].miner)
    for name, variable in named_variables(alone.miner).items():
        np.testing.assert_array_equal(watched[name].numpy(), variable.numpy(), err_msg=name)


def test_time_of_a_part_is_that_of_a_step(monkeypatch):
    """By a clock that ticks once for each part run: refreshes count as often as there were any."""
    model = make(Indexed())
    train(model, epochs=1)
    reencoder = model.miner.index.reencoder
    timing, calls = MiningTime(model), []
    ticks = {"_draw": 2.0, "_write": 3.0, "_refresh": 10.0}
    for part in ticks:

        def counted(*arguments, part=part):
            calls.append(part)
            return tf.range(BATCH), None

        monkeypatch.setattr(timing, part, counted)
    monkeypatch.setattr("time.perf_counter", lambda: sum(ticks[part] for part in calls))
    # In 20 steps 4 refreshes, in the next 10 one, and in the last none; each writes back once.
    for clock, refreshes, share in [(24, 4, 0.2), (35, 5, 0.1), (36, 5, 0.0)]:
        reencoder.clock.assign(clock)
        reencoder.refreshes.assign(refreshes)
        found = timing.seconds_a_step(np.arange(BATCH, dtype=np.int32))
        assert found == {"drawing": 2.0, "writing": 3.0, "refreshing": pytest.approx(10.0 * share)}


def test_refresh_of_a_miner_that_has_none_takes_no_time():
    model = make(Indexed())
    train(model, epochs=1)
    found = MiningTime(model).seconds_a_step(np.arange(BATCH, dtype=np.int32))
    assert found["refreshing"] == 0 < found["drawing"]


@pytest.mark.parametrize("miner", [InBatch, Uniform])
def test_miner_without_an_index_is_let_be_with_one_warning(miner):
    monitor = IndexMonitor(every=1)
    with pytest.warns(
        UserWarning, match=f"IndexMonitor does nothing.*miner={miner.__name__}"
    ) as caught:
        history = train(make(miner()), monitor)
    assert len([each for each in caught if "IndexMonitor" in str(each.message)]) == 1
    assert history.keys() == {"loss"}
    assert monitor.history == []


def test_numbers_are_found_at_any_depth():
    tree = {
        "a": 1,
        "b": [{"c": np.float32(2.5)}, {"c": tf.constant(3)}],
        "d": "text",
        "e": [],
        "f": True,
    }
    assert numbers(tree) == {"a": 1.0, "b/0/c": 2.5, "b/1/c": 3.0}


def test_bad_batch_size_is_refused():
    with pytest.raises(ValueError, match="batch_size must be a whole number.*Received: batch_size=0"):
        IndexMonitor(batch_size=0)
