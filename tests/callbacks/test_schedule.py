import pytest

from tests.callbacks.worlds import STEPS, make, train
from tf_dynidx.callbacks.schedule import Scheduled
from tf_dynidx.miners import InBatch


class Counts(Scheduled):
    """Finds how often it has acted."""

    def act(self):
        return {"acts": len(self.history) + 1.0}


def steps(callback):
    return [each["step"] for each in callback.history]


def test_every_epoch_is_at_the_end_of_each():
    counts = Counts("epoch")
    history = train(make(InBatch()), counts)
    assert steps(counts) == [STEPS, 2 * STEPS]
    assert history["acts"] == [1.0, 2.0]


def test_steps_are_counted_over_epochs_and_over_runs():
    model, counts = make(InBatch()), Counts(2)
    history = train(model, counts)
    assert steps(counts) == [2, 4, 6, 8, 10]
    assert history["acts"] == [2.0, 5.0]  # what was found last
    train(model, counts, epochs=1)
    assert steps(counts) == [12, 14]


def test_several_steps_an_execution_are_counted_as_such():
    counts = Counts(2)
    train(make(InBatch(), steps_per_execution=3), counts)  # 3 and 2 steps, twice
    assert len(counts.history) == 4
    assert steps(counts)[::2] == [3, STEPS + 3]


@pytest.mark.parametrize("every", [0, -1, 1.5, "step", None, True])
def test_bad_schedule_is_refused(every):
    with pytest.raises(ValueError, match='"epoch" or a number of steps .* Received: every='):
        Counts(every)
