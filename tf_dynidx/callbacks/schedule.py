"""When a callback acts: at the end of every epoch, or every so many steps."""

import time
import warnings

from tf_dynidx.index import checks
from tf_dynidx.keras_world import keras


class Scheduled(keras.callbacks.Callback):
    """Acts on a schedule, and puts the numbers that it finds into the logs at the end of each epoch.

    Attributes:
        history: list of dicts, what each act has found, with the `step` that it was at.
    """

    def __init__(self, every):
        super().__init__()
        self.every = every if every == "epoch" else checked_steps(every)
        self.history = []
        self._step = 0

    def on_train_begin(self, logs=None):
        self.history = []
        self._latest = {}
        self._step = steps_done(self.model)
        self._timer = StepTimer(self._step)

    def on_epoch_begin(self, epoch, logs=None):
        # Not read from the model at each step: that would wait for the accelerator.
        self._step = steps_done(self.model)
        self._batch = -1

    def on_train_batch_begin(self, batch, logs=None):
        self._timer.start()

    def on_train_batch_end(self, batch, logs=None):
        before = self._step
        self._step += batch - self._batch  # several, where there are several steps an execution
        self._batch = batch
        self._timer.stop(self._step)
        if self.every != "epoch" and self._step // self.every > before // self.every:
            self._act()

    def on_epoch_end(self, epoch, logs=None):
        # Keras 3 counts the last execution of several steps as full.
        self._step = steps_done(self.model)
        if self.every == "epoch":
            self._act()
        if logs is not None:
            # Callbacks that come later in the list see these, as does the history.
            logs.update(self._latest)

    def act(self):
        """What is to be done: returns a dict of name to float, for the logs."""
        raise NotImplementedError

    def get_config(self):
        """The constructor's arguments."""
        return {"every": self.every}

    @classmethod
    def from_config(cls, config):
        """A callback of the same arguments."""
        return cls(**config)

    def _act(self):
        found = self.act()
        self._latest.update(found)
        if found:
            self.history.append({"step": self._step, **found})


class StepTimer:
    """Wall time in training steps, and nothing between them."""

    def __init__(self, step):
        self._since, self._now, self._seconds = step, step, 0.0

    def start(self):
        """A step begins."""
        self._started = time.perf_counter()

    def stop(self, step):
        """It has ended, and was this one."""
        self._seconds += time.perf_counter() - self._started
        self._now = step

    def seconds_a_step(self):
        """Mean since the last time this was asked; None if there was no step."""
        steps, seconds = self._now - self._since, self._seconds
        self._since, self._seconds = self._now, 0.0
        return seconds / steps if steps else None


def steps_done(model):
    """int, training steps that a model has behind it, those of earlier runs included."""
    step = getattr(model, "step", None)
    # A variable of several replicas is none that int() takes.
    return int((model.optimizer.iterations if step is None else step).numpy())


def checked_steps(every):
    """`every` as int; ValueError if it is neither a number of steps nor "epoch"."""
    try:
        return checks.positive_int("every", every)
    except ValueError as error:
        raise ValueError(
            f'every must be "epoch" or a number of steps of at least 1. Received: every={every!r}'
        ) from error


class ScheduledOnIndex(Scheduled):
    """Acts on the index that the model mines from; without one it warns once and does nothing.

    In a warm-up, where there is no index yet, it does nothing.
    """

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self._warned = False

    def act(self):
        # Not before: the miner makes its index at the first step that mines.
        miner = getattr(self.model, "miner", None)
        index = getattr(miner, "index", None)
        if index is not None:
            return self.act_on(index)
        if not getattr(miner, "built", True):  # after a step of a warm-up
            return {}
        if not self._warned:
            warnings.warn(
                f"{type(self).__name__} does nothing: it is for miners with an index, such as Tree(). "
                f"Received: miner={type(miner).__name__}",
                stacklevel=2,
            )
            self._warned = True
        return {}

    def act_on(self, index):
        """What is to be done with the index: returns a dict of name to float, for the logs."""
        raise NotImplementedError
