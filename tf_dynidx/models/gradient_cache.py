"""Many encodings with a gradient, in the memory of a few.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (2021): encode
everything in chunks and keep nothing but the encodings; once the gradient of the loss with respect to
them is known, encode each chunk again and carry its part of the gradient on to the weights.
"""

import tensorflow as tf

from tf_dynidx.keras_world import IS_KERAS_3


def encode_in_chunks(encode, rows, chunk, state=()):
    """Encodes rows a chunk at a time; the gradient is that of encoding them all at once.

    It costs one more encoding of all rows, where there is a gradient. What an encoder does to a whole
    batch (batch normalisation) it does to a chunk.

    Args:
        encode: function from int32 [chunk] to float32 [chunk, dim].
        rows: int32 [rows].
        chunk: int, rows that are encoded together. The last chunk is filled up with row 0.
        state: variables that `encode` changes, see `changing_state`: they are set back before a chunk
            is encoded again, so that dropout drops the same and nothing is counted twice.

    Returns:
        float32 [rows, dim].
    """
    number = rows.shape[0]
    number = tf.shape(rows)[0] if number is None else number
    chunks = -(-number // chunk)
    blocks = tf.reshape(tf.pad(rows, [[0, chunks * chunk - number]]), [-1, chunk])
    encodings = _encode_blocks(encode, blocks, list(state))
    return tf.reshape(encodings, [chunks * chunk, encodings.shape[2]])[:number]


def _encode_blocks(encode, blocks, state):
    """float32 [blocks, chunk, dim] from int32 [blocks, chunk]."""

    def encode_one(block):
        before = [tf.identity(variable) for variable in state]
        return encode(block), *before

    @tf.custom_gradient
    def encode_all(blocks):
        # One after the other: in parallel they would need the memory of all.
        encodings, *before = tf.map_fn(
            encode_one,
            blocks,
            fn_output_signature=(tf.float32, *(variable.dtype for variable in state)),
            parallel_iterations=1,
        )

        def gradient(upstream, variables=None):
            variables = list(variables or [])
            after = [tf.identity(variable) for variable in state]

            def add(place, *sums):
                for variable, values in zip(state, before, strict=True):
                    variable.assign(values[place])
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(variables)
                    again = encode(blocks[place])
                parts = tape.gradient(
                    again,
                    variables,
                    output_gradients=upstream[place],
                    unconnected_gradients=tf.UnconnectedGradients.ZERO,
                )
                # A part for an embedding table is of the rows looked up; a sum needs one shape.
                parts = [tf.convert_to_tensor(part) for part in parts]
                return place + 1, *(s + part for s, part in zip(sums, parts, strict=True))

            _, *sums = tf.while_loop(
                lambda place, *_: place < tf.shape(blocks)[0],
                add,
                [tf.constant(0), *(tf.zeros(v.shape, v.dtype) for v in variables)],
                parallel_iterations=1,
            )
            for variable, value in zip(state, after, strict=True):
                variable.assign(value)
            return (None, sums) if variables else None

        return encodings, gradient

    return encode_all(blocks)


def changing_state(tower):
    """The variables that a tower changes when it is called in training mode.

    Moving averages and the state of random generators; not weights, frozen or trained.

    Args:
        tower: a Keras model or layer.

    Returns:
        list of `tf.Variable`.

    Raises:
        ValueError: a layer draws random numbers that cannot be drawn again, or has an activity
            regularizer, whose loss would not find its way out of the chunks.
    """
    found = {}
    for layer in tower._flatten_layers():
        if getattr(layer, "activity_regularizer", None) is not None:
            raise ValueError(
                "encode_chunk does not go with activity regularizers: leave it out, or penalise the "
                f"encodings in a loop of your own. Received: layer {layer.name!r} with one"
            )
        own = layer._non_trainable_variables if IS_KERAS_3 else layer._non_trainable_weights
        own = [variable.value if IS_KERAS_3 else variable for variable in own]
        for variable in [*own, *_random_state(layer)]:
            if isinstance(variable, tf.Variable):  # Keras 2 has vocabularies among the weights
                found[id(variable)] = variable
    return list(found.values())


def _random_state(layer):
    if IS_KERAS_3:
        return [generator.state.value for generator in layer._seed_generators]
    generator = getattr(layer, "_random_generator", None)
    # Dropout that drops nothing asks for no numbers.
    if generator is None or not getattr(layer, "rate", True):
        return []
    if generator._rng_type == generator.RNG_LEGACY_STATEFUL:
        raise ValueError(
            "encode_chunk encodes candidates twice, and the random numbers of this layer cannot be "
            "drawn again. With Keras 2, call keras.backend.experimental.enable_tf_random_generator() "
            f"before making the towers. Received: layer {layer.name!r} of {type(layer).__name__}"
        )
    if generator._rng_type == generator.RNG_STATEFUL:
        generator._maybe_init()
        return [generator._generator.state]
    return []
