"""A run of `fit` that may kill itself: python -m tests.models.interrupted FOLDER FREQUENCY [STEP].

FREQUENCY is `save_freq` of `BackupAndRestore`: "epoch" or a number of steps. With STEP, the process is
killed with SIGKILL at the end of that step; else the state that the run ends with is written.
"""

import os
import signal
import sys

import numpy as np
import tensorflow as tf

from tests.models import small
from tf_dynidx.keras_world import IS_KERAS_3, keras
from tf_dynidx.miners import Tree

STEPS_AN_EPOCH, EPOCHS = 12, 3


class Kill(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.step) == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, frequency, kill_at=None):
    tf.config.experimental.enable_op_determinism()
    if not IS_KERAS_3:  # for dropout with a state that can be restored
        keras.backend.experimental.enable_tf_random_generator()
    model = small.make(
        Tree(refresh_every=3),
        towers=lambda: [small.functional_tower(0.1) for _ in range(2)],
        options={"learn_temperature": True},
    )
    full_encodes = []
    encode_corpus = model.encode_corpus
    model.encode_corpus = lambda **kwargs: full_encodes.append(1) or encode_corpus(**kwargs)

    def examples():
        """Those of step 0, 1, ..., from the step on that the model has reached."""
        for step in range(int(model.step), EPOCHS * STEPS_AN_EPOCH):
            some = np.random.default_rng(step).integers(len(small.POSITIVES), size=small.BATCH)
            yield small.QUERY_FEATURES[some], small.POSITIVES[some]

    specs = tf.TensorSpec([small.BATCH, small.WIDTH]), tf.TensorSpec([small.BATCH], tf.int32)
    dataset = tf.data.Dataset.from_generator(examples, output_signature=specs)
    frequency = frequency if frequency == "epoch" else int(frequency)
    callbacks = [keras.callbacks.BackupAndRestore(os.path.join(folder, "backup"), frequency)]
    if kill_at is not None:
        callbacks.append(Kill(int(kill_at)))
    model.fit(
        dataset,
        epochs=EPOCHS,
        steps_per_epoch=STEPS_AN_EPOCH,
        verbose=0,
        callbacks=callbacks,
    )
    np.savez(os.path.join(folder, "state.npz"), full_encodes=len(full_encodes), **small.state(model))


if __name__ == "__main__":
    main(*sys.argv[1:])
