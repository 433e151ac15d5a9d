"""`TargetCorpus`: the features and identifiers of all targets."""

import os

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_dynidx.index import checks
from tf_dynidx.index.placement import PLACEMENTS, kept, where_kept


class TargetCorpus:
    """All targets that a query can be answered with: what the target tower encodes.

    A target is addressed by its row, its place along the leading axis. The features stay tensors
    outside the graph, so that their size is not limited to that of a graph constant.

    Args:
        features: a tensor or array [targets, ...], or a dict of them, as the target tower takes them.
        identifiers: what the user calls the targets: distinct strings or integers [targets]. Default:
            the rows themselves.
        saved: bool, whether a `.keras` file of a model with this corpus holds the corpus (default).
            Without it the file is small, and the corpus is handed in again when it is loaded:
            `keras.models.load_model(path, custom_objects={"corpus": corpus})`. Files of weights and
            checkpoints never hold the corpus.
        placement: where what grows with the corpus is kept: its features, how often each target was
            a positive, and the index of `miners.Tree`. "device" (default): where the model is made.
            "host": in the memory of the host, so that of all targets an accelerator sees the features
            and encodings of those alone that a step has mined. Mining then takes the host's time,
            and no XLA. The tables of other miners stay on the device.

    Raises:
        ValueError: there are no targets, the leading axes differ, identifiers are not one for each
            target, distinct, strings or integers, or the placement is none.

    Example:

    >>> corpus = TargetCorpus({"price": [3.0, 5.0]}, identifiers=["tea", "coffee"])
    >>> corpus.rows_of(["coffee"]).numpy()
    array([1], dtype=int32)
    """

    def __init__(self, features, identifiers=None, saved=True, placement="device"):
        checks.one_of("placement", placement, PLACEMENTS)
        self.placement = placement
        with kept(placement):
            # A tensor may be elsewhere so far.
            copy = tf.identity if placement == "host" else tf.convert_to_tensor
            self.features = tf.nest.map_structure(copy, _as_structure(features))
        flat = tf.nest.flatten(self.features)
        shapes = [tuple(tensor.shape) for tensor in flat]
        if not flat or any(len(shape) == 0 for shape in shapes):
            raise ValueError(
                "features must be a tensor with a leading axis of targets, or a dict of such "
                f"tensors. Received: shapes {shapes}"
            )
        if len({shape[0] for shape in shapes}) > 1:
            raise ValueError(
                "All features must have the same number of targets along their leading axis. "
                f"Received: shapes {shapes}"
            )
        self.size = shapes[0][0]
        if self.size == 0:
            raise ValueError("A corpus needs at least one target. Received: 0 targets")
        self.identifiers = _checked_identifiers(identifiers, self.size)
        self.saved = checks.flag("saved", saved)
        self._gathered = _for_gathers(self.features, self.placement)
        self._rows = None

    def __len__(self):
        return self.size

    @where_kept
    def gather(self, rows):
        """The features of the given rows, int [rows], in the structure of `features`."""
        self.check_filled()
        return tf.nest.map_structure(
            lambda kept, given: tf.cast(tf.gather(kept, rows), given.dtype),
            self._gathered,
            self.features,
        )

    def rows_of(self, identifiers):
        """Rows of identifiers: int32, the shape of `identifiers`; -1 for one that is unknown.

        Usable in a `tf.data` pipeline. (XLA has no string look-up: turn identifiers into rows before
        a compiled step, not in it.)

        Raises:
            ValueError: strings for identifiers that are integers, or the other way round.
        """
        self.check_filled()
        identifiers = tf.convert_to_tensor(identifiers)
        strings = self.identifiers.dtype.kind == "U"
        if not (identifiers.dtype == tf.string if strings else identifiers.dtype.is_integer):
            raise ValueError(
                f"The identifiers of this corpus are {'strings' if strings else 'integers'}: look up "
                f"the same. Received: dtype {identifiers.dtype.name}"
            )
        if self._rows is None:
            # Outside any graph being traced, so that the table lives as long as the corpus.
            with tf.init_scope():
                keys = tf.constant(self.identifiers)
                initializer = tf.lookup.KeyValueTensorInitializer(
                    keys, tf.range(self.size, dtype=tf.int32)
                )
                self._rows = tf.lookup.StaticHashTable(initializer, default_value=-1)
        return self._rows.lookup(tf.cast(identifiers, self._rows.key_dtype))

    # Saving.

    def get_config(self):
        """What the corpus is like, as JSON can hold it: not its features, nor its identifiers."""
        return {
            "size": self.size,
            "features": _described(self.features),
            "strings": self.identifiers.dtype.kind == "U",
            "saved": self.saved,
            "placement": self.placement,
        }

    @classmethod
    def from_config(cls, config):
        """A corpus like the one described, without content until `read` fills it."""
        corpus = cls.__new__(cls)
        corpus.size, corpus.saved = config["size"], config["saved"]
        corpus.placement = config["placement"]
        corpus.features = corpus._gathered = corpus.identifiers = corpus._rows = None
        corpus._config = config
        return corpus

    @classmethod
    def restored(cls, config, handed_in):
        """The corpus that a model is loaded with.

        Args:
            config: what `get_config` of the saved one returned.
            handed_in: the corpus among the custom objects; anything else counts as none.

        Raises:
            ValueError: the corpus that was handed in is not like the one described.
        """
        if not isinstance(handed_in, cls):
            return cls.from_config(config)
        handed_in.check_like(config)
        return handed_in

    def check_filled(self):
        """Raises a ValueError where `from_config` made the corpus and nothing has filled it."""
        if self.features is None:
            raise ValueError(
                "The model was loaded without its corpus. Hand it in: load_model(path, "
                'custom_objects={"corpus": corpus}), or from_config(config, custom_objects=...). '
                f"Received: only the description of a corpus of {self.size} targets"
            )

    def check_like(self, config):
        """Raises a ValueError where the corpus is not like the one described.

        Features may have changed, and identifiers; their number, shapes and dtypes may not.
        """
        own = self.get_config()
        for name in ("size", "features"):
            if own[name] != config[name]:
                raise ValueError(
                    "The corpus must be like the one that the model was saved with. Received: "
                    f"{name} {own[name]}, saved with {config[name]}"
                )

    def write(self, folder):
        """Writes features and identifiers into an existing folder, as .npy files."""
        for place, (_, tensor) in enumerate(_named(self.features)):
            _write_array(os.path.join(folder, f"features_{place}"), tensor.numpy())
        identifiers = self.identifiers
        if identifiers.dtype.kind == "U":
            identifiers = np.array([each.encode() for each in identifiers.tolist()], object)
        _write_array(os.path.join(folder, "identifiers"), identifiers)

    @where_kept
    def read(self, folder):
        """Fills a corpus that `from_config` made with what `write` wrote."""
        arrays = {}
        for place, (name, shape, dtype) in enumerate(self._config["features"]):
            path = os.path.join(folder, f"features_{place}")
            arrays[name] = tf.constant(_read_array(path, shape, dtype))
        identifiers = _read_array(
            os.path.join(folder, "identifiers"),
            [self.size],
            "string" if self._config["strings"] else "int64",
        )
        if self._config["strings"]:
            identifiers = np.array([each.decode() for each in identifiers], str)
        self.features = arrays.get(None, arrays)
        self._gathered = _for_gathers(self.features, self.placement)
        self.identifiers = identifiers


def encode_all(encode, number, batch=4096, progress=False):
    """Encodes all targets, a batch at a time.

    Args:
        encode: function from int32 [rows] to float [rows, dim]; always given as many rows, so that
            nothing is traced twice.
        number: int, how many targets there are.
        batch: int, rows that are encoded together.
        progress: bool, whether to show a bar.

    Returns:
        NumPy array [targets, dim].
    """
    batch, parts = min(batch, number), []
    with tqdm(total=number, desc="encoding targets", unit="", disable=not progress) as bar:
        for start in range(0, number, batch):
            # The last batch reaches back.
            first = min(start, number - batch)
            parts.append(encode(tf.range(first, first + batch)).numpy()[start - first :])
            bar.update(len(parts[-1]))
    return np.concatenate(parts)


def _for_gathers(features, placement):
    """The features as steps read rows of them.

    Beside a GPU TensorFlow keeps tensors of int32 in the memory of the host, and a step that XLA
    compiles would be sent all of them each time. Those of int64 are on the device.
    """
    if placement == "host" or not tf.config.list_logical_devices("GPU"):
        return features

    def on_device(tensor):
        return tf.cast(tensor, tf.int64) if tensor.dtype == tf.int32 else tensor

    return tf.nest.map_structure(on_device, features)


def _named(features):
    """(name, tensor) of each feature, sorted by name; a single tensor has the name None."""
    return sorted(features.items()) if isinstance(features, dict) else [(None, features)]


def _described(features):
    return [[name, tensor.shape.as_list(), tensor.dtype.name] for name, tensor in _named(features)]


def _write_array(path, array):
    if array.dtype.kind == "O":  # byte strings, one after the other, and how long each is
        flat = array.ravel().tolist()
        np.save(f"{path}_bytes.npy", np.frombuffer(b"".join(flat), np.uint8))
        np.save(f"{path}_lengths.npy", np.array([len(each) for each in flat], np.int64))
    else:
        bfloat16 = array.dtype == tf.bfloat16.as_numpy_dtype  # NumPy has no file format for it
        np.save(f"{path}.npy", array.view(np.uint16) if bfloat16 else array)


def _read_array(path, shape, dtype):
    if dtype == "string":
        joined = np.load(f"{path}_bytes.npy").tobytes()
        ends = np.cumsum(np.load(f"{path}_lengths.npy"))
        starts = np.concatenate([[0], ends[:-1]]).tolist()
        parts = [joined[start:end] for start, end in zip(starts, ends.tolist(), strict=True)]
        array = np.empty(len(parts), object)
        array[:] = parts
        return array.reshape(shape)
    array = np.load(f"{path}.npy")
    return array.view(tf.bfloat16.as_numpy_dtype) if dtype == "bfloat16" else array


def _as_structure(features):
    """A dict stays a dict of arrays; anything else is one array, lists included."""
    if isinstance(features, dict):
        return {name: _as_array(value) for name, value in features.items()}
    return _as_array(features)


def _as_array(value):
    return value if tf.is_tensor(value) else np.asarray(value)


def _checked_identifiers(identifiers, size):
    if identifiers is None:
        return np.arange(size, dtype=np.int64)
    if tf.is_tensor(identifiers):
        identifiers = identifiers.numpy()
    identifiers = np.asarray(identifiers)
    if identifiers.dtype.kind == "O":
        identifiers = np.array([_as_text(value) for value in identifiers])
    if identifiers.dtype.kind in "iu":
        identifiers = identifiers.astype(np.int64)
    elif identifiers.dtype.kind == "S":
        identifiers = np.char.decode(identifiers, "utf-8")
    elif identifiers.dtype.kind != "U":
        raise ValueError(
            f"identifiers must be strings or integers. Received: dtype {identifiers.dtype}"
        )
    if identifiers.shape != (size,):
        raise ValueError(
            f"There must be one identifier for each of the {size} targets. "
            f"Received: identifiers of shape {identifiers.shape}"
        )
    distinct, times = np.unique(identifiers, return_counts=True)
    if len(distinct) < size:
        raise ValueError(
            f"Identifiers must be distinct. Received: {distinct[times > 1][0]!r} "
            f"{times[times > 1][0]} times"
        )
    return identifiers


def _as_text(value):
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        return value
    raise ValueError(f"identifiers must be strings or integers. Received: {value!r}")
