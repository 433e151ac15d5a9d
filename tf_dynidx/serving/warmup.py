"""Warm-up requests: what TF Serving asks a model before it answers anybody else.

https://www.tensorflow.org/tfx/serving/saved_model_warmup: a file of `PredictionLog` messages. Their
definitions come with a package of their own, and the few fields that are needed are written here.
"""

import os
from pathlib import Path

import tensorflow as tf

_PATH = os.path.join("assets.extra", "tf_serving_warmup_requests")
# Numbers of fields, from prediction_log.proto, predict.proto and model.proto.
_PREDICT_LOG, _REQUEST = 6, 1
_MODEL_SPEC, _INPUTS = 1, 2
_SIGNATURE_NAME = 3
_KEY, _VALUE = 1, 2


def write_warmup(folder: str | os.PathLike, requests: list[tuple[str, dict[str, tf.Tensor]]]) -> None:
    """Writes warm-up requests into the folder of a SavedModel.

    Args:
        folder: Of the SavedModel.
        requests: Name of a signature and its inputs, for each request.
    """
    path = Path(folder, _PATH)
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests:
            request = _field(_MODEL_SPEC, _field(_SIGNATURE_NAME, signature.encode()))
            for name, value in sorted(inputs.items()):
                tensor = tf.make_tensor_proto(value.numpy()).SerializeToString()
                entry = _field(_KEY, name.encode()) + _field(_VALUE, tensor)
                request += _field(_INPUTS, entry)
            writer.write(_field(_PREDICT_LOG, _field(_REQUEST, request)))


def blank(spec: tf.TensorSpec) -> tf.Tensor:
    """Zeros or empty strings in the place of an input: one where its size is free."""
    shape = [1 if size is None else size for size in spec.shape] if spec.shape.rank else []
    return tf.fill(shape, "") if spec.dtype == tf.string else tf.zeros(shape, spec.dtype)


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes, text or a message, as protocol buffers encode it."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
