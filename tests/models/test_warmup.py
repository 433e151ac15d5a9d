"""`warmup_examples`: trained in-batch at first, and on mined negatives from then on."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

from tests.models.small import (
    BATCH,
    POSITIVES,
    QUERY_FEATURES,
    assert_same_state,
    batches,
    make,
    state,
    weights,
)
from tf_dynidx import DualEncoder
from tf_dynidx.callbacks import IndexMonitor
from tf_dynidx.miners import InBatch, Tree, Uniform

STEPS = 3
OPTIONS = {"warmup_examples": STEPS * BATCH, "mining_queries": 10}


class Counting(Uniform):
    """Counts the rows that it is told of."""

    def make_state(self, corpus, encode_corpus):
        self.told = tf.Variable(0, name="told")

    def observe(self, rows, encodings):
        self.told.assign_add(tf.size(rows))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_steps_of_the_warmup_are_those_of_in_batch_training(jit_compile):
    model = make(Counting(2), options=OPTIONS, jit_compile=jit_compile)
    in_batch = make(InBatch(), jit_compile=jit_compile)
    data = batches()
    for each in (model, in_batch):
        each.fit(data.take(STEPS), verbose=0)
    for a, b in zip(weights(model), weights(in_batch), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not model.miner.built and not model.warming_up
    # From now on ten queries draw two negatives each, and their step is another one.
    for each in (model, in_batch):
        each.fit(data.skip(STEPS).take(4), verbose=0)
    assert model.miner.told.numpy() == 4 * (BATCH + 10 * 2)
    assert int(model.step) == STEPS + 4
    assert any((a != b).any() for a, b in zip(weights(model), weights(in_batch), strict=True))


def test_mining_begins_within_an_epoch_and_a_part_of_a_batch_counts_as_a_step():
    options = OPTIONS | {"warmup_examples": STEPS * BATCH + 1}
    model = make(Tree(), options=options)
    asked = []
    model.prepare_miner = lambda: asked.append(int(model.step)) or DualEncoder.prepare_miner(model)
    logs = model.fit(batches(), epochs=2, verbose=0).history
    assert asked[0] == STEPS + 1
    assert int(model.miner.full_encodes) == 1
    # Each step since has written back what it has encoded.
    assert int(model.miner.index.reencoder.clock.numpy()) >= 24 - STEPS - 1
    assert len(logs["staleness"]) == 2 and logs["loss"][1] < logs["loss"][0]


@pytest.mark.parametrize("need", ["prepare_miner", "mined_loss"])
def test_what_needs_the_miner_ends_the_warmup(need):
    model = make(Counting(2), options=OPTIONS | {"warmup_examples": 10**6})
    data = batches().take(2)
    model.fit(data, verbose=0)
    assert model.warming_up and not model.miner.built
    if need == "prepare_miner":
        model.prepare_miner()
    else:
        model.mined_loss(QUERY_FEATURES[:BATCH], POSITIVES[:BATCH])
    assert not model.warming_up
    model.fit(data, verbose=0)
    assert model.miner.told.numpy() == 2 * (BATCH + 10 * 2)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_validation_in_the_warmup_is_that_of_in_batch_training_and_leaves_it_going(jit_compile):
    model = make(Tree(), options=OPTIONS, jit_compile=jit_compile)
    in_batch = make(InBatch(), jit_compile=jit_compile)
    data, held_out = batches(), batches().take(2)
    before = [each.evaluate(held_out, verbose=0) for each in (model, in_batch)]
    assert before[0] == before[1] and model.warming_up
    losses = []
    for each in (model, in_batch):
        logs = each.fit(data.take(STEPS - 1), validation_data=held_out, verbose=0).history
        losses.append(logs["val_loss"])
        each.fit(data.skip(STEPS - 1).take(1), verbose=0)
    assert losses[0] == losses[1] and not model.miner.built
    # The warm-up is over: of the same weights, the loss is estimated from mined negatives now.
    assert model.evaluate(held_out, verbose=0) != in_batch.evaluate(held_out, verbose=0)
    assert int(model.miner.full_encodes) == 1


@pytest.mark.parametrize("stopped", [1, STEPS + 2])
def test_weights_file_of_a_warmup_goes_on_with_it(stopped, tmp_path):
    def fresh():
        return make(Counting(2), options=OPTIONS)

    data, whole, first, second = batches(), fresh(), fresh(), fresh()
    whole.fit(data, verbose=0)
    first.fit(data.take(stopped), verbose=0)
    first.save_weights(tmp_path / "model.weights.h5")
    second.optimizer.build(second.trainable_variables)
    second.load_weights(tmp_path / "model.weights.h5")
    assert second.warming_up == (stopped < STEPS)
    second.fit(data.skip(stopped), verbose=0)
    assert_same_state(state(whole), state(second))


def test_callbacks_have_nothing_to_watch_in_a_warmup():
    model = make(Tree(), options=OPTIONS)
    monitor = IndexMonitor(every=1)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        model.fit(batches().take(STEPS + 2), verbose=0, callbacks=[monitor])
    assert not [each for each in warned if "IndexMonitor" in str(each.message)]
    assert [found["step"] for found in monitor.history] == [STEPS + 1, STEPS + 2]


def test_miners_that_draw_nothing_are_not_warmed_up_for():
    model = make(InBatch(), options=OPTIONS)
    assert not model.warming_up
    model.fit(batches().take(1), verbose=0)
    assert model.miner.built


def test_configuration_has_it():
    model = make(Tree(), options=OPTIONS)
    config = model.get_config()
    again = DualEncoder.from_config(config, {"corpus": model.corpus})
    assert again.warmup_examples == STEPS * BATCH and again.warming_up


@pytest.mark.parametrize(
    "options, message",
    [
        ({"warmup_examples": -1}, "warmup_examples must be a whole number of at least 0. Received.*-1"),
        ({"warmup_examples": 1.5}, "warmup_examples must be a whole number .*=1.5"),
        ({"warmup_examples": 9, "sharing": "none"}, "leave it out. Received: warmup_examples=9, sh"),
    ],
)
def test_bad_warmups_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(Uniform(), options=options)
