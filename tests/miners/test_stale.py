import numpy as np
import pytest
import tensorflow as tf

from tests.miners.worlds import World
from tf_dynidx.miners import Stale


def observe(world, row=0):
    world.miner.observe(tf.constant([row]), tf.gather(world.table, [row]))


def test_table_stands_still_until_all_targets_are_encoded_anew():
    world = World(Stale(refresh_every=3))
    first = world.table.numpy()
    for step in range(1, 8):
        world.move(0.2, seed=step)
        observe(world)
        if step % 3 == 0:
            fresh = world.table.numpy()
        expected = first if step < 3 else fresh
        np.testing.assert_allclose(world.miner.table, expected, atol=1e-6, err_msg=str(step))
    assert int(world.miner.full_encodes) == 3


def test_more_targets_than_are_encoded_together_are_all_encoded():
    world = World(Stale(refresh_every=1), targets=2048 + 5)
    world.move(0.3)
    observe(world)
    np.testing.assert_allclose(world.miner.table, world.table, atol=1e-6)
    # In two parts of one size.
    assert int(world.miner.rows_encoded) == 2053 + 2054


@pytest.mark.parametrize("refresh_every", [0, 2.5, None])
def test_bad_interval_is_refused(refresh_every):
    with pytest.raises(ValueError, match=f"at least 1. Received: refresh_every={refresh_every!r}"):
        Stale(refresh_every=refresh_every)
