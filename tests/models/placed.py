"""Trains, evaluates and searches on the second of two devices: python -m tests.models.placed PLACEMENT.

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


# Reads are where their variable is, and what a loop hands on is where it was.
_WHEREVER = "ReadVariableOp", "While"


def longest_elsewhere(function, host):
    """The largest leading dimension of what operations of a graph make that are not on the host."""
    lengths = [0]
    for operation in function.graph.get_operations():
        if host not in operation.device and operation.type not in _WHEREVER:
            shapes = [output.shape for output in operation.outputs if output.dtype != tf.resource]
            lengths += [shape[0] or 0 for shape in shapes if shape.rank]
    return max(lengths)


def main():
    placement = sys.argv[1]
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    # Not before: importing Keras 2 settles what devices there are.
    from tests.models import small
    from tf_dynidx.miners import Tree

    x, y = small.QUERY_FEATURES[: small.BATCH], small.POSITIVES[: small.BATCH]
    with tf.device("CPU:1"):
        options = {"learn_temperature": True}
        model = small.make(Tree(refresh_every=2), options=options, corpus={"placement": placement})
        model.prepare_miner()
        losses = [float(model.train_on_batch(x, y, return_dict=True)["loss"]) for _ in range(4)]
        losses.append(float(model.evaluate(x, y, batch_size=len(y), verbose=0)))
        found = model.miner.index.search(model.encode_queries(x), k=3)[1]
        model.miner.index.refresh(model.encode_rows)
        model.miner.index.repair()
    index = model.miner.index
    kept = [*index.variables, *model.frequencies.variables, model.corpus.features]
    elsewhere = {id(each) for each in kept}
    weights = [w for tower in (model.query_tower, model.target_tower) for w in tower.weights]
    weights += [each for each in model._own_state().values() if id(each) not in elsewhere]
    weights = [getattr(w, "value", w) for w in weights]
    weights = [w if isinstance(w, tf.Variable) else w() for w in weights]

    # Traced without a device around it, only what is pinned has one.
    step = tf.function(lambda x, y: model.train_step((x, y))["loss"], autograph=False)
    search = tf.function(lambda x: index.top_k(model.encode_queries(x), 3)[1], autograph=False)
    step = step.get_concrete_function(tf.constant(x), tf.constant(y))
    search = search.get_concrete_function(tf.constant(x))
    report = {
        "kept": sorted({each.device for each in kept}),
        "weights": sorted({each.device for each in weights}),
        "found": found.device,
        "pinned": sorted({*named_devices(step), *named_devices(search)}),
        "longest_elsewhere": max(longest_elsewhere(each, "CPU:0") for each in (step, search)),
        "losses": losses,
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
