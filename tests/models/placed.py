"""Trains, evaluates and searches on the second of two devices: python -m tests.models.placed.

Prints, as JSON, where variables are, which devices the step and the search name, and losses.
"""

import json
import sys

import tensorflow as tf


def named_devices(function):
    """Devices that operations of a graph, and of all functions that it calls, ask for by name."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    return sorted({node.device for node in nodes if node.device})


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    # Not before: importing Keras 2 settles what devices there are.
    from tests.models import small
    from tf_dynidx.miners import Tree

    x, y = small.QUERY_FEATURES[: small.BATCH], small.POSITIVES[: small.BATCH]
    with tf.device("CPU:1"):
        model = small.make(Tree(refresh_every=2), options={"learn_temperature": True})
        model.prepare_miner()
        losses = [float(model.train_on_batch(x, y, return_dict=True)["loss"]) for _ in range(4)]
        losses.append(float(model.evaluate(x, y, batch_size=len(y), verbose=0)))
        found = model.miner.index.search(model.encode_queries(x), k=3)[1]
    weights = [w for tower in (model.query_tower, model.target_tower) for w in tower.weights]
    variables = [*model._own_state().values(), *(getattr(w, "value", w) for w in weights)]

    # Traced without a device around it, only what is pinned has one.
    step = tf.function(lambda x, y: model.train_step((x, y))["loss"], autograph=False)
    search = tf.function(lambda x: model.miner.index.top_k(model.encode_queries(x), 3)[1])
    pinned = {*named_devices(step.get_concrete_function(tf.constant(x), tf.constant(y)))}
    pinned |= {*named_devices(search.get_concrete_function(tf.constant(x)))}
    values = [each if isinstance(each, tf.Variable) else each() for each in variables]
    report = {
        "variables": sorted({each.device for each in values}),
        "found": found.device,
        "pinned": sorted(pinned),
        "losses": losses,
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
