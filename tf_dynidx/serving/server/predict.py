"""Runs a signature on what a client sent, or says what is wrong with it."""

import re

import numpy as np
import tensorflow as tf

DEFAULT_SIGNATURE = "serving_default"


class RequestError(Exception):
    """A request that is not answered.

    Args:
        code: "INVALID_ARGUMENT", "NOT_FOUND" or "INTERNAL", as gRPC has them.
        message: what was wrong, what was received, what to do.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message


def signature_of(loaded, name: str):
    """A signature by name, "" for the default one; RequestError if there is none of that name."""
    name = name or DEFAULT_SIGNATURE
    if name not in loaded.signatures:
        raise RequestError(
            "INVALID_ARGUMENT",
            f'Serving signature name: "{name}" not found in signature def. '
            f"Ask for one of: {', '.join(sorted(loaded.signatures))}.",
        )
    return loaded.signatures[name]


def specs_of(signature) -> dict[str, tf.TensorSpec]:
    """The inputs of a signature by name."""
    return signature.structured_input_signature[1]


def predict(signature, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a signature.

    Args:
        signature: from `signature_of`.
        inputs: an array for each input; strings as bytes in an object array.

    Raises:
        RequestError: the inputs are not those of the signature, or it refuses them.
    """
    tensors = _checked(specs_of(signature), inputs)
    try:
        outputs = signature(**tensors)
        return {name: value.numpy() for name, value in outputs.items()}
    except tf.errors.InvalidArgumentError as error:
        raise RequestError("INVALID_ARGUMENT", _plain(error.message)) from error
    except tf.errors.OpError as error:
        raise RequestError("INTERNAL", _plain(error.message)) from error


def check_names(specs, names) -> None:
    """Raises a RequestError unless the names are those of the inputs."""
    if set(names) != set(specs):
        raise RequestError(
            "INVALID_ARGUMENT",
            f"The inputs must be {_listed(specs)}. Received: {_listed(names)}.",
        )


def _checked(specs, inputs):
    """The inputs as tensors, if they are what the signature takes."""
    check_names(specs, inputs)
    tensors, sizes = {}, {}
    for name, spec in specs.items():
        value = inputs[name]
        dtype = tf.string if value.dtype.kind in "OSU" else tf.as_dtype(value.dtype)
        if dtype != spec.dtype:
            raise RequestError(
                "INVALID_ARGUMENT",
                f"The input {name} must be of type {spec.dtype.name}. Received: {dtype.name}.",
            )
        if not spec.shape.is_compatible_with(value.shape):
            raise RequestError(
                "INVALID_ARGUMENT",
                f"The input {name} must have the shape {_shown(spec.shape)}. "
                f"Received: {_shown(tf.TensorShape(value.shape))}.",
            )
        if spec.shape.rank and spec.shape[0] is None:
            sizes[name] = value.shape[0]
        tensors[name] = tf.constant(value, spec.dtype, value.shape)
    if 0 in sizes.values():
        raise RequestError(
            "INVALID_ARGUMENT", "The batch is empty: there is nothing to answer. Received: 0 rows."
        )
    if len(set(sizes.values())) > 1:
        raise RequestError(
            "INVALID_ARGUMENT", f"All inputs must have as many rows. Received: rows {sizes}."
        )
    return tensors


def _listed(names):
    return ", ".join(sorted(names)) or "none"


def _shown(shape):
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"


def _plain(message: str) -> str:
    """What an error of TensorFlow says, without where in the graph that was."""
    lines = [re.sub(r"\s*\[\[?\{\{.*|\s*\[Op:.*", "", line).strip() for line in message.splitlines()]
    found = [line for line in lines if "assertion failed" in line]
    noise = ("Graph execution error", "Detected at node", "<stack traces", "(", "File ")
    found = found or [line for line in lines if line and not line.startswith(noise)]
    return found[0] if found else message
