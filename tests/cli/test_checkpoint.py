import json

import numpy as np
import pytest

from tf_dynidx import files
from tf_dynidx.cli.checkpoint import Checkpoint, refuse_others

RUN = {"settings": {"batch": 32, "miner": "tree"}, "data": {"train": "abc"}, "sizes": (1, 2)}


class Model:
    """As much of a model as is asked for: one number."""

    trainable_variables = ()

    def __init__(self, weight=0.0):
        self.weight, self.optimizer = weight, self

    def build(self, variables):
        self.was_built = True

    def save_weights(self, path):
        np.array(self.weight).tofile(path)

    def load_weights(self, path):
        self.weight = float(np.fromfile(path)[0])


def test_what_was_written_last_comes_back(tmp_path):
    folder = tmp_path / "a" / "checkpoint"
    first = Checkpoint(folder, RUN)
    assert first.state is None
    first.write({"step": 1}, Model(1.0), None)
    first.write({"step": 2}, Model(2.0), [np.arange(3), np.ones([2, 2])])
    again = Checkpoint(folder, RUN)
    assert again.state == {"step": 2}
    model = Model()
    best = again.restore(model)
    assert model.weight == 2.0 and model.was_built
    np.testing.assert_array_equal(best[0], np.arange(3))
    np.testing.assert_array_equal(best[1], np.ones([2, 2]))
    again.write({"step": 3}, Model(3.0), None)
    assert Checkpoint(folder, RUN).restore(model) is None and model.weight == 3.0
    assert len(list(folder.iterdir())) == 2  # one state, one folder of weights


@pytest.mark.parametrize("fails", ["save_weights", "write_json"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, fails):
    checkpoint = Checkpoint(tmp_path, RUN)
    checkpoint.write({"step": 1}, Model(1.0), None)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Model if fails == "save_weights" else files, fails, interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write({"step": 2}, Model(2.0), None)
    monkeypatch.undo()
    model = Model()
    again = Checkpoint(tmp_path, RUN)
    again.restore(model)
    assert again.state == {"step": 1} and model.weight == 1.0
    again.write({"step": 3}, Model(3.0), None)
    assert len(list(tmp_path.iterdir())) == 2


def test_checkpoint_of_another_training_is_refused(tmp_path):
    Checkpoint(tmp_path, RUN).write({}, Model(), None)
    other = RUN | {"settings": {"batch": 64, "miner": "tree"}}
    with pytest.raises(ValueError, match="settings batch: 32 there, 64 here. Use the same") as refused:
        Checkpoint(tmp_path, other)
    assert "miner" not in str(refused.value) and str(tmp_path) in str(refused.value)


def test_differences_are_named_and_equals_pass():
    refuse_others("Other", json.loads(json.dumps(RUN)), RUN)
    with pytest.raises(ValueError, match="Received: a b: 1 there, None here; c: None there, 2 here"):
        refuse_others("Other", {"a": {"b": 1}}, {"a": {}, "c": 2})
