"""Requests and answers in the JSON that TF Serving speaks, in rows or in columns.

https://www.tensorflow.org/tfx/serving/api_rest
"""

import base64
import binascii
from typing import Any

import numpy as np

from tf_dynidx.serving.server.predict import RequestError, check_names


def inputs_of(request: dict, specs: dict) -> dict[str, np.ndarray]:
    """The inputs of a request.

    Args:
        request: with the key "instances" (a list of rows, each an object of inputs, or the input itself
            where there is one) or the key "inputs" (an object of columns, or the column itself).
        specs: `tf.TensorSpec` of each input.

    Raises:
        RequestError: it is neither, or a value is not of its input's type.
    """
    if ("instances" in request) == ("inputs" in request):
        raise _refused(
            'A request must have "instances" or "inputs", and not both',
            f"the keys {sorted(map(str, request))}",
        )
    if "instances" in request:
        columns = _columns(request["instances"], specs)
    else:
        columns = request["inputs"]
        if not isinstance(columns, dict) or _is_bytes(columns):
            columns = _alone(columns, specs)
    check_names(specs, columns)
    return {name: _array(name, value, specs[name].dtype) for name, value in columns.items()}


def answer_of(outputs: dict[str, np.ndarray], in_rows: bool) -> dict:
    """What a client gets: "predictions", a list of rows, or "outputs", an object of columns.

    Raises:
        RequestError: rows are asked for, and outputs have different numbers of them.
    """
    columns = {name: _listed(value) for name, value in outputs.items()}
    alone = next(iter(columns.values())) if len(columns) == 1 else None
    if not in_rows:
        return {"outputs": columns if alone is None else alone}
    if len({len(column) for column in columns.values()}) > 1:
        raise _refused("The outputs have different numbers of rows: ask in columns", "instances")
    if alone is not None:
        return {"predictions": alone}
    rows = zip(*columns.values(), strict=True)
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in rows]}


def _columns(rows: Any, specs) -> dict:
    if not isinstance(rows, list):
        raise _refused('"instances" must be a list', type(rows).__name__)
    if not rows:
        raise _refused("The batch is empty: there is nothing to answer", "no instances")
    if not all(isinstance(row, dict) and not _is_bytes(row) for row in rows):
        return _alone(rows, specs)
    for row in rows:
        check_names(specs, row)
    return {name: [row[name] for row in rows] for name in specs}


def _alone(column, specs):
    if len(specs) != 1:
        raise _refused(
            f"There are several inputs: give each by its name, {', '.join(sorted(specs))}", "one value"
        )
    return {next(iter(specs)): column}


def _array(name, value, dtype):
    shape, flat = _flat(name, value, dtype)
    array = np.empty(len(flat), object if dtype.name == "string" else dtype.as_numpy_dtype)
    try:
        array[:] = flat
    except OverflowError as error:
        raise _refused(f"The input {name} must fit {dtype.name}", str(error)) from error
    return array.reshape(shape)


def _flat(name, value, dtype):
    """Shape and leaves of nested lists."""
    if not isinstance(value, list):
        return (), [_leaf(name, value, dtype)]
    parts = [_flat(name, each, dtype) for each in value]
    shapes = {shape for shape, _ in parts}
    if len(shapes) > 1:
        raise _refused(
            f"The lists in the input {name} must be of one length: pad them",
            f"shapes {sorted(shapes)}",
        )
    inner = shapes.pop() if shapes else ()
    return (len(parts), *inner), [leaf for _, leaves in parts for leaf in leaves]


def _leaf(name, value, dtype):
    if dtype.name == "string":
        if isinstance(value, str):
            return value.encode()
        if _is_bytes(value):
            try:
                return base64.b64decode(value["b64"], validate=True)
            except (binascii.Error, TypeError, ValueError) as error:
                raise _refused(f"The input {name} has no valid base64", str(error)) from error
    elif dtype.is_bool:
        if isinstance(value, bool):
            return value
    elif isinstance(value, int) and not isinstance(value, bool):
        if dtype.is_floating or dtype.min <= value <= dtype.max:
            return value
    elif isinstance(value, float) and dtype.is_floating:
        return value
    raise _refused(f"The input {name} must be of type {dtype.name}", f"{value!r:.80}")


def _is_bytes(value):
    return isinstance(value, dict) and value.keys() == {"b64"}


def _listed(array):
    if array.dtype.kind != "O":
        return array.tolist()
    return _texts(array.tolist())


def _texts(value):
    if isinstance(value, list):
        return [_texts(each) for each in value]
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _refused(wrong, received):
    return RequestError("INVALID_ARGUMENT", f"{wrong}. Received: {received}.")
