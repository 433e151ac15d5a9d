"""Where a training has got to, in a folder that is whole at every moment.

`state.json` names the folder that the weights are in. Both are written beside what they replace, and
the file takes the place of the last one in one step: whenever the process ends, the one or the other
state is there.
"""

import json
import secrets
import shutil
from pathlib import Path

import numpy as np

from tf_dynidx import files

_STATE = "state.json"
_WEIGHTS = "model.weights.h5"  # with optimizer, miner, counts and random states
_BEST = "best.npz"


class Checkpoint:
    """The checkpoint of one training.

    Attributes:
        state: what was written last, as JSON has it; None where there is none.
    """

    def __init__(self, folder, run):
        """Looks for a checkpoint.

        Args:
            folder: path; need not exist.
            run: dict of what the training is, such as settings and data: what JSON can write.

        Raises:
            ValueError: the folder holds the checkpoint of another training.
        """
        self._folder, self._run = Path(folder), run
        self.state = self._weights = None
        if (self._folder / _STATE).exists():
            found = json.loads((self._folder / _STATE).read_text(encoding="utf-8"))
            refuse_others(f"The checkpoint {str(folder)!r} is of another training", found["run"], run)
            self.state, self._weights = found["state"], found["weights"]

    def write(self, state, model, best):
        """Replaces the checkpoint.

        Args:
            state: what JSON can write.
            model: `DualEncoder`.
            best: list of arrays, other weights to keep, or None.
        """
        name = f"weights-{secrets.token_hex(4)}"
        with files.new_directory(self._folder / name) as folder:
            model.save_weights(str(folder / _WEIGHTS))
            if best is not None:
                np.savez(folder / _BEST, *best)
        found = {"run": self._run, "state": state, "weights": name}
        files.write_json(self._folder / _STATE, found)
        self.state, self._weights = state, name
        for other in self._folder.iterdir():
            # What a killed process left half written begins with a dot.
            if (
                other.is_dir()
                and other.name != name
                and other.name.startswith(("weights-", ".weights-"))
            ):
                shutil.rmtree(other, ignore_errors=True)

    def restore(self, model):
        """Fills a model that has just been compiled; returns the other weights, or None."""
        folder = self._folder / self._weights
        model.optimizer.build(model.trainable_variables)
        model.load_weights(str(folder / _WEIGHTS))
        if not (folder / _BEST).exists():
            return None
        with np.load(folder / _BEST) as arrays:
            return [arrays[name] for name in arrays.files]


def refuse_others(what, there, here):
    """Refuses what was begun with other arguments.

    Args:
        what: str, the beginning of the message.
        there, here: dicts of what JSON can write, with dicts in them.

    Raises:
        ValueError: they differ; the message says where.
    """
    # As JSON gives them back: tuples are lists.
    there, here = _flat(there), _flat(json.loads(json.dumps(here)))
    keys = dict.fromkeys([*there, *here])
    changed = [
        f"{key}: {there.get(key)} there, {here.get(key)} here"
        for key in keys
        if there.get(key) != here.get(key)
    ]
    if changed:
        raise ValueError(
            f"{what}. Received: {'; '.join(changed)}. Use the same arguments and data to go on with "
            "it, or another folder to begin anew."
        )


def _flat(nested, where=""):
    """One dict of all values, by their keys joined."""
    flat = {}
    for key, value in nested.items():
        key = f"{where} {key}".strip()
        flat |= _flat(value, key) if isinstance(value, dict) else {key: value}
    return flat
