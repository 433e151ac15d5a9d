import dataclasses

import pytest

from tf_dynidx import miners
from tf_dynidx.cli.settings import MINERS, Settings


def test_every_miner_of_the_command_line_is_there():
    for name, kind in MINERS.items():
        miner = getattr(miners, kind)()
        assert Settings(miner=name).mines == bool(miner.num_negatives)


def test_learning_rate_and_temperature_suit_the_encoder_unless_they_are_given():
    assert Settings().filled().learning_rate == 0.005
    assert Settings().filled().temperature == 0.05
    assert Settings(encoder="id").filled().learning_rate == 0.03
    assert Settings(encoder="id").filled().temperature == 0.1
    given = Settings(encoder="id", learning_rate=0.1, temperature=0.2)
    assert given.filled() == given
    filled = Settings().filled()
    assert dataclasses.replace(filled, learning_rate=None, temperature=None) == Settings()


def test_candidates_of_a_step_are_positives_and_what_is_mined():
    assert Settings(batch=100).candidates == 300
    assert Settings(batch=1000).candidates == 1512
    assert Settings(batch=1000, negatives=3, mining_queries=10).candidates == 1030
    assert Settings(batch=1000, negatives=3, sharing="none").candidates == 4000
    assert Settings(batch=1000, miner="in-batch").candidates == 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negatives": 6}, "fewer targets than negatives. Received: 5 targets, 6 negatives for tree"),
        ({"miner": "in-batch", "sharing": "none"}, "Received: sharing=none for in-batch"),
        ({"miner": "in-batch", "warmup_examples": 9}, "Received: warmup_examples=9, sharing=batch for"),
        ({"sharing": "none", "warmup_examples": 9}, "Received: warmup_examples=9, sharing=none for"),
        ({"miner": "exact", "reads": 9}, "Only the tree .*Received: reads=9 for exact"),
        ({"steps": 1, "encoder_calls": 9}, "one budget. Received: steps and encoder_calls"),
    ],
)
def test_what_no_model_can_be_made_of_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(**settings).check(num_targets=5)
    Settings(miner="in-batch", negatives=6).check(num_targets=5)
    Settings(negatives=5, seconds=1.0).check(num_targets=5)
