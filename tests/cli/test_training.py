"""What `train` is promised to do beside learning: its data's order, its budgets, going on."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest

from tests.models.small import assert_same_state, state
from tf_dynidx.cli.data import Pairs, Targets
from tf_dynidx.cli.settings import Settings
from tf_dynidx.cli.training import _Data, train
from tf_dynidx.keras_world import keras

WORDS = ["red", "green", "blue", "small", "large", "round", "square"]
NAMES = [f"{a} {b}" for a in WORDS for b in WORDS if a != b]
TARGETS = Targets(NAMES, [f"{name} thing" for name in NAMES])
TRAIN = Pairs(
    [f"one {name} {word}" for name in NAMES for word in ("please", "now")],
    [np.array([row], np.int32) for row in range(len(NAMES)) for _ in range(2)],
)
TEST = Pairs([f"a {name}" for name in NAMES], [np.array([row], np.int32) for row in range(len(NAMES))])
SETTINGS = Settings(steps=12, batch=16, dim=8, seed=3)


class Watch(keras.callbacks.Callback):
    """Holds on to the model, and does something at the end of a step."""

    def __init__(self, step=None, act=None):
        super().__init__()
        self.step, self.act = step, act

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.step) == self.step:
            self.act()


def run(settings=SETTINGS, held_out=None, watch=None, checkpoint=None):
    return train(TARGETS, TRAIN, TEST, settings, held_out, False, watch=watch, checkpoint=checkpoint)


def without_time(history):
    return [{k: v for k, v in point.items() if k != "seconds"} for point in history]


# The order of the data.


def examples(settings, first, number):
    """The queries of some batches, told by their features."""
    data = _Data(TARGETS, TRAIN, TEST, None, settings)
    place = {features.tobytes(): i for i, features in enumerate(data._query_features)}
    return [
        [place[row.tobytes()] for row in features.numpy()]
        for features, _ in data.dataset(first).take(number)
    ]


def test_batches_depend_on_their_number_alone():
    batches = examples(SETTINGS, 0, 16)
    assert examples(SETTINGS, 5, 11) == batches[5:]
    assert examples(dataclasses.replace(SETTINGS, seed=4), 0, 16) != batches


def test_every_epoch_has_every_example_once_in_an_order_of_its_own():
    size = len(TRAIN.queries)  # 84: no multiple of the batch
    drawn = np.concatenate(examples(SETTINGS, 0, 11))
    first, second = drawn[:size], drawn[size : 2 * size]
    np.testing.assert_array_equal(np.sort(first), np.arange(size))
    assert len(set(second)) == len(second) and (first[: len(second)] != second).any()
    assert (first != np.arange(size)).any()


# Budgets.


def test_encoder_calls_are_a_budget(untimed, uncompiled):
    settings = dataclasses.replace(
        SETTINGS, miner="uniform", steps=None, encoder_calls=500, negatives=3
    )
    report = run(settings).report
    # 16 queries with a positive and three negatives each: 64 a step, and the last goes past the end.
    assert report["steps"] == 8 and report["encoder_calls"] == 512
    for point in report["history"]:
        assert point["encoder_calls"] == 64 * point["step"]


def test_what_a_miner_encodes_by_itself_counts(untimed, uncompiled):
    watch = Watch()
    report = run(
        dataclasses.replace(SETTINGS, miner="exact", steps=3, sharing="none"), None, watch
    ).report
    assert watch.model.sharing == "none"
    assert report["full_encodes"] == 3
    assert report["encoder_calls"] == 3 * (16 * 3 + len(NAMES))


def test_steps_of_a_warmup_encode_no_negatives(untimed, uncompiled):
    settings = dataclasses.replace(
        SETTINGS, miner="stale", steps=None, encoder_calls=500, warmup_examples=50
    )
    report = run(settings).report
    # Four steps of 16, one full encode, and steps of 16 and two negatives for each.
    mining = -(-(500 - 4 * 16 - len(NAMES)) // 48)
    assert report["steps"] == 4 + mining and report["full_encodes"] == 1
    assert report["encoder_calls"] == 4 * 16 + len(NAMES) + 48 * mining
    assert [point["encoder_calls"] for point in report["history"]][:2] == [64, 154]


# Stopped, and gone on with.


def assert_resumed_as_whole(resumed, expected, models):
    assert_same_state(*map(state, models))
    for a, b in zip(expected.encodings(), resumed.encodings(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert resumed.held_out == expected.held_out
    assert without_time(resumed.report["history"]) == without_time(expected.report["history"])
    for name in ("metrics", "steps", "encoder_calls", "full_encodes"):
        assert resumed.report[name] == expected.report[name]


def test_stopped_training_of_a_tree_ends_as_one_that_was_not(tmp_path, untimed, uncompiled):
    """SIGTERM, as Ctrl-C, loses no step, and the index comes back as it was."""
    settings = dataclasses.replace(SETTINGS, warmup_examples=50)
    whole, last = Watch(), Watch()
    expected = run(settings, None, whole)
    with pytest.raises(KeyboardInterrupt):
        run(settings, None, Watch(7, lambda: os.kill(os.getpid(), signal.SIGTERM)), tmp_path)
    steps = []
    last.on_train_batch_begin = lambda batch, logs=None: steps.append(int(last.model.step))
    resumed = run(settings, None, last, tmp_path)
    assert steps == [7, 8, 9, 10, 11]
    assert resumed.report["full_encodes"] == 1
    assert_resumed_as_whole(resumed, expected, (last.model, whole.model))


def test_crashed_training_goes_on_from_the_last_point_of_its_history(tmp_path, untimed, uncompiled):
    def crash():
        raise RuntimeError("out of something")

    settings = dataclasses.replace(SETTINGS, miner="in-batch", steps=30)
    whole, last = Watch(), Watch()
    expected = run(settings, TEST, whole)
    with pytest.raises(RuntimeError, match="out of something"):
        run(settings, TEST, Watch(8, crash), tmp_path)
    steps = []
    last.on_train_batch_begin = lambda batch, logs=None: steps.append(int(last.model.step))
    resumed = run(settings, TEST, last, tmp_path)
    assert steps == list(range(6, 30))
    assert_resumed_as_whole(resumed, expected, (last.model, whole.model))
    # What is over is trained no further.
    again = run(settings, TEST, Watch(31, crash), tmp_path)
    assert again.report["metrics"] == expected.report["metrics"]
    with pytest.raises(ValueError, match="settings batch: 16 there, 8 here"):
        run(dataclasses.replace(settings, batch=8), TEST, None, tmp_path)
    with pytest.raises(ValueError, match="data held_out: .* there, None here"):
        run(settings, None, None, tmp_path)


def test_seconds_go_on_where_they_were(tmp_path, untimed, uncompiled):
    settings = dataclasses.replace(SETTINGS, miner="in-batch", steps=None, seconds=600.0)
    rates = []

    def stopped_at(step):
        watch = Watch(step, lambda: os.kill(os.getpid(), signal.SIGINT))
        watch.on_train_batch_begin = lambda batch, logs=None: rates.append(
            float(watch.model.optimizer.learning_rate)
        )
        with pytest.raises(KeyboardInterrupt):
            run(settings, None, watch, tmp_path)
        return json.loads((tmp_path / "state.json").read_text())["state"]["seconds"]

    before, after = stopped_at(20), stopped_at(21)
    assert 0 < before <= after
    # The learning rate falls with the seconds: of the second part, to what it was after the first.
    assert len(rates) == 21
    assert rates[20] == pytest.approx(0.005 * (1 - before / 600)) and rates[20] < rates[0]
