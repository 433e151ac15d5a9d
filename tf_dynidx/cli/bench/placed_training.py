"""One training of `tf-dynidx bench placement`, in a process of its own."""

import json
import sys
import time

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_dynidx.cli import memory

K = 10  # of the recall
_WIDTH, _FEATURES = 128, 32
_TEMPERATURE = 0.05
_QUERIES = 10_000  # that recall is measured on
_NOISE = 1.5  # of a query, by which its features differ from those of its target
_BLOCK = 65_536  # targets that are scored at a time


def measured(miner, placement, rows, steps, batch, dim, seed):
    """Trains a model on the accelerator: a dict of bytes held, of recall, and of seconds a step.

    Args:
        miner: "cache", "tree" or "in-batch".
        placement: of the corpus.
        rows, steps, batch, dim, seed: as in `Settings`.
    """
    accelerator = _accelerator()
    # Not before: importing Keras settles what devices there are.
    from tf_dynidx import DualEncoder, TargetCorpus, miners
    from tf_dynidx.cli.encodings import clustered
    from tf_dynidx.keras_world import keras

    make = {"cache": miners.NegativeCache, "tree": miners.Tree, "in-batch": miners.InBatch}[miner]
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    features = clustered(rows, _FEATURES, 1, seed, progress=True).targets
    # What a query says of its target is not in the target's own terms.
    rotation = np.linalg.qr(rng.standard_normal([_FEATURES, _FEATURES]))[0].astype(np.float32)

    def queries(positives):
        noise = _NOISE * _FEATURES**-0.5 * rng.standard_normal([len(positives), _FEATURES], np.float32)
        return features[positives] @ rotation + noise

    with tf.device(accelerator):
        model = DualEncoder(
            _tower(keras, dim),
            _tower(keras, dim),
            TargetCorpus(features, placement=placement),
            make(seed=seed),
            temperature=_TEMPERATURE,
            similarity="cosine",
        )
        model.compile(optimizer=keras.optimizers.Adam(0.002), jit_compile=False)
        if tf.config.list_physical_devices("GPU"):
            tf.config.experimental.reset_memory_stats(accelerator)
        model.prepare_miner(progress=True)
        seconds = []
        for _ in tqdm(range(steps), desc=f"{miner}, {placement}", unit="step"):
            positives = rng.integers(rows, size=batch).astype(np.int32)
            x = queries(positives)
            started = time.perf_counter()
            loss = float(model.train_on_batch(x, positives, return_dict=True)["loss"])
            seconds.append(time.perf_counter() - started)
        peak = memory.accelerator_peak()
        positives = rng.integers(rows, size=_QUERIES)
        encoded = model.encode_queries(queries(positives)).numpy()
    parts = {
        "miner": model.miner.variables,
        "features": [model.corpus.features],
        "counts": model.frequencies.variables,
    }
    on_accelerator = sum(_bytes(each, accelerator) for each in parts.values())
    return {
        "miner": _bytes(parts["miner"]),
        "features": _bytes(parts["features"]),
        "counts": _bytes(parts["counts"]),
        "accelerator": on_accelerator,
        "host": sum(_bytes(each) for each in parts.values()) - on_accelerator,
        "peak": peak,
        "recall": _recall(encoded, model.encode_corpus(), positives),
        "loss": loss,
        "seconds": float(np.median(seconds)),
    }


def _accelerator():
    """The name of the device that models are made on; divides the processor where there is no GPU."""
    if tf.config.list_physical_devices("GPU"):
        return "GPU:0"
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return "CPU:1"


def _tower(keras, dim):
    hidden = [keras.layers.Dense(_WIDTH, activation="gelu") for _ in range(2)]
    return keras.Sequential([keras.Input([_FEATURES]), *hidden, keras.layers.Dense(dim)])


def _bytes(tensors, device=""):
    """Of the tensors and variables that are on a device."""
    here = [each for each in tensors if each.device.endswith(device)]
    return sum(int(np.prod(each.shape)) * each.dtype.size for each in here)


def _recall(queries, targets, positives):
    """The share of queries whose target is among the best `K`."""
    own = np.einsum("qd,qd->q", queries, targets[positives])
    better = np.zeros(len(queries), np.int64)
    for start in range(0, len(targets), _BLOCK):
        scores = queries @ targets[start : start + _BLOCK].T
        # Rounding must not put a target before itself.
        better += (scores > own[:, None] + 1e-6).sum(axis=1)
    return float((better < K).mean())


if __name__ == "__main__":
    print(json.dumps(measured(**json.loads(sys.argv[1]))))
