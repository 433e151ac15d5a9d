"""For which queries of a batch negatives are drawn."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import reference
from tests.models.small import BATCH, QUERY_FEATURES, TARGETS, TEMPERATURE, make
from tf_dynidx.miners import Uniform
from tf_dynidx.models.drawing import drawing_queries


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50), st.integers(1, 60), st.booleans())
def test_queries_that_draw_are_spread_evenly(batch, most, known):
    """Also where the size of a batch is known only when it is there."""
    size = batch if known else None
    traced = tf.function(
        lambda *each: drawing_queries(*each, most),
        input_signature=[tf.TensorSpec([size, 3]), tf.TensorSpec([size, 1], tf.int32)],
    )
    rows = np.arange(batch, dtype=np.int32)[:, None]
    queries, positives = traced(np.tile(rows.astype(np.float32), 3), rows)
    np.testing.assert_array_equal(queries.numpy(), np.tile(positives.numpy(), 3))
    some = positives.numpy()[:, 0]
    assert len(some) == min(batch, most)
    gaps = np.diff([*some, batch])
    if len(some):
        assert some[0] == 0 and gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("sharing", "drawn"), [("batch", 7), ("none", BATCH)])
def test_step_draws_for_no_more_than_it_is_told(sharing, drawn):
    model = make(Uniform(3), options={"mining_queries": 7, "sharing": sharing})
    model.prepare_miner()
    y = tf.range(BATCH)[:, None]
    _, candidates = model._loss_and_candidates(QUERY_FEATURES[:BATCH], y, None, training=True)
    rows = candidates.rows.numpy()
    assert len(rows) == BATCH + 3 * drawn
    np.testing.assert_array_equal(rows[:BATCH], np.arange(BATCH))


def test_loss_expects_as_many_draws_as_there_are():
    model = make(Uniform(3), options={"mining_queries": 7})
    model.prepare_miner()
    y = np.arange(BATCH, dtype=np.int32)
    loss, candidates = model._loss_and_candidates(
        QUERY_FEATURES[:BATCH], tf.constant(y[:, None]), None, True
    )
    rows = candidates.rows.numpy()
    logits = model.query_tower(QUERY_FEATURES[:BATCH]).numpy() @ candidates.encodings.numpy().T
    # Seven times three of the targets, and each as often as not a positive of another query.
    expected = np.full(len(rows), np.log((7 * 3 + BATCH - 1) / TARGETS))
    masked = rows[None] == y[:, None]
    each = reference.sampled_softmax(logits / TEMPERATURE, y, expected, masked)
    assert float(loss) == pytest.approx(np.mean(each), rel=1e-4)
