"""What Keras does not save of towers by itself: layers that they share, and random states."""

import tensorflow as tf

from tf_dynidx.keras_world import IS_KERAS_3, keras

FUNCTIONAL = type(keras.Model(*[keras.Input([1])] * 2))  # what keras.Model(inputs, outputs) is


def serialized_towers(query_tower, target_tower):
    """The configuration of two towers, as entries for that of their model.

    Keras makes two of a layer that two configurations mention. So functional towers that share layers
    are kept as the one model that both are parts of.

    Raises:
        ValueError: the towers share layers, and are not both functional models.
    """
    serialize = keras.utils.serialize_keras_object
    towers = (query_tower, target_tower)
    if query_tower is target_tower:
        return {"query_tower": serialize(query_tower), "target_tower": None}
    layers = [{id(layer) for layer in tower._flatten_layers()} for tower in towers]
    if not layers[0] & layers[1]:
        return {"query_tower": serialize(query_tower), "target_tower": serialize(target_tower)}
    if not all(type(tower) is FUNCTIONAL for tower in towers):
        raise ValueError(
            "Towers that share layers have a configuration only if both are functional models: save "
            "the weights instead, save_weights(path). "
            f"Received: {' and '.join(type(tower).__name__ for tower in towers)} that share layers"
        )
    joint = keras.Model(
        [*query_tower.inputs, *target_tower.inputs], [tower.outputs[0] for tower in towers]
    )
    inputs = [[tower.name, len(tower.inputs), _input_names(tower)] for tower in towers]
    return {"joint_towers": serialize(joint), "inputs_of_towers": inputs}


def deserialized_towers(config):
    """Takes what `serialized_towers` gave out of a configuration: (query tower, target tower)."""
    if "joint_towers" not in config:
        configs = config.pop("query_tower"), config.pop("target_tower")
        query_tower, target_tower = (each and _deserialize(each) for each in configs)
        return query_tower, query_tower if target_tower is None else target_tower
    joint = _deserialize(config.pop("joint_towers"))
    inputs, towers = list(joint.inputs), []
    for (name, number, keys), output in zip(config.pop("inputs_of_towers"), joint.outputs, strict=True):
        mine, inputs = inputs[:number], inputs[number:]
        if keys is not None:
            mine = dict(zip(keys, mine, strict=True))
        towers.append(keras.Model(mine[0] if keys is None and number == 1 else mine, output, name=name))
    return tuple(towers)


def _deserialize(config):
    return keras.utils.deserialize_keras_object(config)


def _input_names(tower):
    """The keys of a functional tower's inputs in their order, if it takes a dict; else None."""
    structure = tower._inputs_struct if IS_KERAS_3 else tower._nested_inputs
    return sorted(structure) if isinstance(structure, dict) else None


def random_states(tower):
    """The states of the random generators of a tower's layers: dict from name to `tf.Variable`."""
    found = []
    for layer in tower._flatten_layers():
        if IS_KERAS_3:
            found += [generator.state.value for generator in layer._seed_generators]
            continue
        generator = getattr(layer, "_random_generator", None)
        if generator is not None and generator._rng_type == generator.RNG_STATEFUL and layer.built:
            generator._maybe_init()
            found.append(generator._generator.state)
    return {str(place): variable for place, variable in enumerate(found)}


class RandomStates(tf.Module):
    """Lets `tf.train.Checkpoint` see the states of random generators, which Keras does not show it."""

    def __init__(self, query_tower, target_tower):
        super().__init__()
        self.query = random_states(query_tower)
        self.target = random_states(target_tower)
