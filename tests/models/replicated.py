"""Trains on two replicas and on one, the same batches: python -m tests.models.replicated WHAT.

Two devices that one processor is divided into stand for any others. Prints what came out as JSON.
"""

import json
import sys

import numpy as np
import tensorflow as tf

_cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(_cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
# Not before: importing Keras 2 settles what devices there are.
from tests.models import small  # noqa: E402
from tf_dynidx.callbacks import IndexRefresh  # noqa: E402
from tf_dynidx.keras_world import keras  # noqa: E402
from tf_dynidx.miners import Mixed, NegativeCache, Popularity, Stale, Tree  # noqa: E402
from tf_dynidx.miners.miner import Miner, softmax_log_prob  # noqa: E402

# One for the process: where replicas are processors, two of them would be in each other's way.
TWO = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
# The last batch has one query: one of the replicas has none.
QUERIES, BATCH = 121, 40


class Hardest(Miner):
    """Draws without chance, so that what two replicas draw is what one does: a table's highest scores."""

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
    """Queries with one positive or two, one with none; weights of examples."""
    second = (small.POSITIVES[:QUERIES] + 7) % small.TARGETS
    y = np.stack([small.POSITIVES[:QUERIES], np.where(np.arange(QUERIES) % 3, -1, second)], axis=1)
    y[5] = -1
    # Which of two is trained on is picked at random: by each replica for itself.
    y = y[:, :1]
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


def trained(strategy, miner, epochs=2, callbacks=(), **options):
    with strategy.scope():
        model = small.make(miner, **options)
    history = model.fit(data(), epochs=epochs, verbose=0, callbacks=list(callbacks)).history
    evaluated = model.evaluate(data(), verbose=0, return_dict=True)
    return model, {"fit": history, "evaluate": evaluated}


def differences(values, others):
    return [float(np.abs(a - b).max(initial=0.0)) for a, b in zip(values, others, strict=True)]


def apart(model):
    """Names of what is not the same on all replicas."""
    state = model._own_state()
    assert all(len(variable.values) == 2 for variable in state.values())
    copies = {name: [v.numpy() for v in variable.values] for name, variable in state.items()}
    return [name for name, (a, b) in copies.items() if not np.array_equal(a, b)]


def same_as_one(miner, **options):
    one, logs_one = trained(tf.distribute.get_strategy(), miner(), **options)
    two, logs_two = trained(TWO, miner(), **options)
    mine = [np.asarray(v, np.float64) for v in small.state(one).values()]
    yours = [np.asarray(v, np.float64) for v in small.state(two).values()]
    return {
        "one": logs_one,
        "two": logs_two,
        "weights": max(differences(small.weights(one), small.weights(two))),
        "state": max(differences(mine, yours)),
        "apart": apart(two),
    }


def exact():
    """What involves no chance."""
    from tf_dynidx.miners import InBatch

    learned = {"learn_temperature": True, "similarity": "cosine", "relative_margin": 0.0}
    return {
        "in-batch": same_as_one(InBatch, towers=regularized, options=learned),
        "mined": same_as_one(lambda: Hardest(2)),
        "own negatives": same_as_one(lambda: Hardest(3), options={"sharing": "none"}),
    }


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

    # In a file, and out of it in a model that is not replicated.
    model.save_weights("two.weights.h5")
    alone = small.make(Tree(refresh_every=2))
    alone.load_weights("two.weights.h5")
    mine, yours = ({n: v.numpy() for n, v in m._own_state().items()} for m in (model, alone))
    found["kept"] = all(np.array_equal(mine[name], yours[name]) for name in mine)
    alone.fit(data(), verbose=0)
    alone.save_weights("one.weights.h5")
    model.load_weights("one.weights.h5")
    found["loaded"] = all(
        np.array_equal(v.numpy(), model._own_state()[n].numpy()) for n, v in alone._own_state().items()
    )
    found["apart after loading"] = apart(model)
    return found


def others():
    """Every other kind of state, and a loop of one's own, which prepares the miner in a step."""
    miner = Mixed([Popularity(1), Stale(1, refresh_every=2), NegativeCache(1, cache_size=50)])
    with TWO.scope():
        model = small.make(
            miner, towers=lambda: (small.functional_tower(), small.functional_tower(0.2))
        )
    variables = [getattr(v, "value", v) if hasattr(v, "path") else v for v in model.trainable_variables]

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
    return {"losses": losses, "apart": apart(model), "step": int(model.step.numpy())}


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
