import numpy as np
import pytest

from tests.callbacks.worlds import STEPS, TARGETS, encoded, make, train
from tf_dynidx.callbacks import IndexRefresh
from tf_dynidx.miners import InBatch


def held(model):
    return model.miner.index.read(np.arange(TARGETS, dtype=np.int32)).numpy()


def test_repair_leaves_no_row_out_of_place_and_all_encodings_as_they_are():
    model, alone, refresh = make(), make(), IndexRefresh()
    history = train(model, refresh, epochs=1)
    assert model.miner.index.stats()["moved_rows"] == 0
    model.miner.index.check()
    assert history["index/rows_moved"] == [each["index/rows_moved"] for each in refresh.history]
    assert history["index/rows_moved"][0] > 0
    train(alone, epochs=1)
    assert alone.miner.index.stats()["moved_rows"] > 0
    np.testing.assert_allclose(held(model), held(alone), atol=1e-6)
    assert int(model.miner.full_encodes) == 1


def test_full_refresh_encodes_all_targets_with_the_encoder_as_it_is():
    model = make()
    model.prepare_miner()
    before = held(model)
    model.miner.index.remove(np.arange(5))  # they are left out
    train(model, IndexRefresh(full=True), epochs=1)
    assert model.miner.index.size == TARGETS - 5
    np.testing.assert_allclose(held(model)[5:], encoded(model)[1][5:], atol=1e-5)
    assert np.abs(held(model) - before)[5:].max() > 0.01
    model.miner.index.check()
    assert int(model.miner.full_encodes) == 2
    assert int(model.miner.rows_encoded) == 2 * TARGETS


def test_refresh_in_mid_epoch_retraces_nothing():
    model = make()
    refresh = IndexRefresh(every=2)
    train(model, refresh, epochs=1)
    step = model.train_step
    traced = []
    model.train_step = lambda data: traced.append(1) or step(data)
    model.make_train_function(force=True)
    train(model, refresh, epochs=2)
    assert [each["step"] for each in refresh.history] == [STEPS + s for s in (1, 3, 5, 7, 9)]
    assert len(traced) <= 2


def test_miner_without_an_index_is_let_be_with_one_warning():
    with pytest.warns(UserWarning, match="IndexRefresh does nothing.*Received: miner=InBatch"):
        history = train(make(InBatch()), IndexRefresh(full=True))
    assert history.keys() == {"loss"}


def test_bad_schedule_is_refused():
    with pytest.raises(ValueError, match='"epoch" or a number of steps .* Received: every=0'):
        IndexRefresh(every=0)
