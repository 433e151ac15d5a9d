"""Trains on two replicas and on one, the same batches: python -m tests.models.replicated WHAT.

Two devices that one processor is divided into stand for any others. Prints what came out as JSON.
"""

import json
import sys
import tempfile

import numpy as np
import tensorflow as tf

_cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(_cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
# Not before: importing Keras 2 settles what devices there are.
from tests.models import small  # noqa: E402
from tf_dynidx.callbacks import IndexRefresh  # noqa: E402
from tf_dynidx.keras_world import keras  # noqa: E402
from tf_dynidx.miners import InBatch, Popularity, Tree  # noqa: E402
from tf_dynidx.miners.miner import Miner, softmax_log_prob  # noqa: E402
from tf_dynidx.models.dual_encoder import _values  # noqa: E402

# One for the process: where replicas are processors, two of them would be in each other's way.
TWO = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
# The last batch has one query: one of the replicas has none.
QUERIES, BATCH = 121, 40


class Hardest(Miner):
    """Draws without chance, so that two replicas draw what one does: a table's highest scores."""

    def make_state(self, corpus, encode_corpus):
        self.table = tf.Variable(encode_corpus(), trainable=False, name="table")

    def mine(self, queries, beta, positives):
        scores = tf.matmul(queries, self.table, transpose_b=True)
        return tf.math.top_k(scores, self.num_negatives).indices, tf.reduce_logsumexp(beta * scores, 1)

    def log_prob(self, rows, queries, beta, positives, drawn):
        read = lambda rows: tf.gather(self.table, rows)  # noqa: E731
        return softmax_log_prob(read, rows, queries, beta, positives, drawn)

    def observe(self, rows, encodings):
        self.table.scatter_nd_update(rows[:, None], encodings)


def data():
    """Queries, one of which has no positive, with weights."""
    y = small.POSITIVES[:QUERIES].copy()
    y[5] = -1
    weights = 0.5 + np.arange(QUERIES, dtype=np.float32) % 4
    dataset = tf.data.Dataset.from_tensor_slices((small.QUERY_FEATURES[:QUERIES], y, weights))
    return dataset.batch(BATCH)


def regularized():
    def tower(dropout=0.0):
        features = keras.Input([small.WIDTH])
        l2 = keras.regularizers.L2(0.01)
        inner = keras.layers.Dense(16, activation="tanh", kernel_regularizer=l2)(features)
        return keras.Model(features, keras.layers.Dense(small.DIM)(inner))

    return tower(), tower()


def trained(strategy, miner, callbacks=(), epochs=2, **options):
    with strategy.scope():
        model = small.make(miner, **options)
    logs = model.fit(data(), epochs=epochs, verbose=0, callbacks=list(callbacks)).history
    return model, logs


def differences(values, others):
    return [float(np.abs(a - b).max(initial=0.0)) for a, b in zip(values, others, strict=True)]


def apart(model):
    """Names of what is not the same on all replicas."""
    state = model._own_state()
    assert all(len(variable.values) == 2 for variable in state.values())
    copies = {name: [v.numpy() for v in variable.values] for name, variable in state.items()}
    return [name for name, (a, b) in copies.items() if not np.array_equal(a, b)]


def same_as_one(miner, **options):
    one, logs = trained(tf.distribute.get_strategy(), miner(), **options)
    two, logs_of_two = trained(TWO, miner(), **options)
    evaluated = [float(model.evaluate(data(), verbose=0)) for model in (one, two)]
    mine, yours = (
        [np.asarray(value, np.float64) for value in small.state(model).values()] for model in (one, two)
    )
    return {
        "logs": [logs, logs_of_two],
        "evaluated": evaluated,
        "differences": differences(mine, yours),
        "apart": apart(two),
    }


def in_batch():
    options = {"learn_temperature": True, "similarity": "cosine", "relative_margin": 0.0}
    return same_as_one(InBatch, towers=regularized, options=options)


def mined():
    return same_as_one(lambda: Hardest(2), options={"warmup_examples": 2 * small.BATCH})


def own_negatives():
    return same_as_one(lambda: Hardest(3), options={"sharing": "none"})


def tree():
    """The index: the same on all replicas, through all that changes it; draws of each its own."""
    model, logs = trained(TWO, Tree(refresh_every=2), callbacks=[IndexRefresh()])
    miner, found = model.miner, {"logs": logs, "apart": apart(model)}
    miner.index.check()
    queries = model.encode_queries(small.QUERY_FEATURES[:8])
    none = tf.fill([8, 1], -1)
    beta = tf.constant(8.0)

    @tf.function(autograph=False)
    def drawn():
        return TWO.run(lambda: miner.mine(queries, beta, none)[0])

    draws = np.array([[each.numpy() for each in drawn().values] for _ in range(400)])
    truth = np.exp(8.0 * queries.numpy() @ miner.index.read(tf.range(small.TARGETS)).numpy().T)
    truth /= truth.sum(axis=1, keepdims=True)
    pooled = draws.transpose(2, 0, 1, 3).reshape(8, -1)
    shares = np.array([np.bincount(each, minlength=small.TARGETS) for each in pooled])
    independent = np.random.default_rng(0).multinomial(pooled.shape[1], truth)
    found["distance"] = float(np.abs(shares / pooled.shape[1] - truth).sum() / 16)
    found["noise"] = float(np.abs(independent / pooled.shape[1] - truth).sum() / 16)
    found["alike"] = float((draws[:, 0] == draws[:, 1]).mean())

    # In a file, and out of it in a model that is not replicated; and back, on to all replicas.
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.weights.h5"
        model.save_weights(path)
        alone = small.make(Tree(refresh_every=2))
        alone.load_weights(path)
        mine, yours = ({n: v.numpy() for n, v in m._own_state().items()} for m in (model, alone))
        found["kept"] = all(np.array_equal(mine[name], yours[name]) for name in mine)
        checkpoint = tf.train.Checkpoint(model=model)
        written = checkpoint.write(f"{folder}/checkpoint")
        for form, load in {
            "weights": lambda: model.load_weights(path),
            "checkpoint": lambda: checkpoint.read(written),
        }.items():
            for variable in model._own_state().values():
                variable.assign(tf.zeros_like(variable))
            load()
            again = {name: variable.numpy() for name, variable in model._own_state().items()}
            found[form] = all(np.array_equal(mine[name], again[name]) for name in mine)
    found["apart after loading"] = apart(model)
    return found


def others():
    """Dropout, and a loop of one's own, which prepares the miner in a step."""
    miner = Popularity(1)
    with TWO.scope():
        model = small.make(
            miner, towers=lambda: (small.functional_tower(), small.functional_tower(0.2))
        )
        model.optimizer.build(model.trainable_variables)
    variables = _values(model.trainable_variables)

    @tf.function(autograph=False)
    def step(x, y, sample_weight):
        def one(x, y, sample_weight):
            with tf.GradientTape() as tape:
                loss = model.mined_loss(x, y, sample_weight)
            gradients = tape.gradient(loss, variables)
            model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            model.after_step()
            return loss

        return TWO.reduce("SUM", TWO.run(one, (x, y, sample_weight)), axis=None)

    losses = [
        float(step(*batch)) for _ in range(3) for batch in TWO.experimental_distribute_dataset(data())
    ]
    counted = float(model.frequencies.total.numpy()), int(model.step.numpy())
    return {"losses": losses, "apart": apart(model), "counted": counted}


def refused():
    """Messages."""
    found = {}
    with TWO.scope():
        compiled = small.make(jit_compile=True)
    outside = small.make()
    with TWO.scope():
        unknown = small.make()
    unknown.frequencies = outside.frequencies
    with TWO.scope():
        chunks = small.make(
            towers=lambda: (small.functional_tower(), small.functional_tower(0.2)),
            options={"encode_chunk": 8},
        )
    for name, model in {"compiled": compiled, "outside": unknown, "chunks": chunks}.items():
        try:
            model.fit(data(), verbose=0)
        except ValueError as error:
            found[name] = str(error)
    return found


if __name__ == "__main__":
    json.dump({name: globals()[name]() for name in sys.argv[1:]}, sys.stdout)
