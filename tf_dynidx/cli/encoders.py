"""The encoders of the command line: text as hashed pieces, or identifiers as rows of a table.

Small on purpose: they train on a CPU in minutes, and what they learn is decided by the negatives.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tf_dynidx.keras_world import keras

_NGRAM = 4


@dataclass(frozen=True)
class Tokenizer:
    r"""Texts as hashed words and character 4-grams; no vocabulary to learn, store or ship.

    Words are runs of letters, marks and digits, in lower case; camelCase is two words. A text gives
    its words in order, then the 4-grams of `<word>` for each word, so that a text that is cut loses
    sub-words first: `readFile` is read, file, <rea, read, ead>, <fil, file, ile>. A text without a
    word gives one piece, the empty word, so that no text is padding alone.

    TensorFlow operations only, because the same function runs over the data before training and
    inside an export.

    What is not kept: pieces that fall into one bucket are one piece, and combining marks are not
    composed (`é` as one character and as two are different words).

    Args:
        vocabulary: Number of ids, padding included.
        max_pieces: Pieces kept of a text.
    """

    vocabulary: int = 65_536
    max_pieces: int = 64

    def __post_init__(self):
        if self.vocabulary < 2:
            raise ValueError(
                "vocabulary counts the padding too, so it is at least 2. "
                f"Received: vocabulary={self.vocabulary}"
            )
        if self.max_pieces < 1:
            raise ValueError(f"max_pieces is at least 1. Received: max_pieces={self.max_pieces}")

    def __call__(self, texts) -> tf.Tensor:
        """The pieces of each text.

        Args:
            texts: string [batch], UTF-8.

        Returns:
            int32 [batch, max_pieces]: ids from 1 to vocabulary - 1, then 0 as padding.
        """
        texts = tf.convert_to_tensor(texts, tf.string)
        texts = tf.strings.regex_replace(texts, r"(\p{Ll}|\p{N})(\p{Lu})", r"\1 \2")
        texts = tf.strings.lower(texts, encoding="utf-8")
        texts = tf.strings.regex_replace(texts, r"[^\p{L}\p{M}\p{N}]+", " ")
        # With a separator given, splitting nothing gives the empty word; without, it gives no word.
        words = tf.strings.split(tf.strings.strip(texts), sep=" ")
        pieces = tf.concat([words, _ngrams(words)], axis=1)
        ids = tf.ragged.map_flat_values(
            tf.strings.to_hash_bucket_fast, pieces, num_buckets=self.vocabulary - 1
        )
        return tf.cast(1 + ids.to_tensor(-1, shape=[None, self.max_pieces]), tf.int32)


def _ngrams(words: tf.RaggedTensor) -> tf.RaggedTensor:
    """The character 4-grams of `<word>` for all words of a text: string [batch, (ngrams)]."""
    marked = tf.strings.join(["<", words.flat_values, ">"])
    characters = tf.strings.unicode_split(marked, "UTF-8")
    ngrams = tf.strings.ngrams(characters, _NGRAM, separator="")
    return words.with_flat_values(ngrams).merge_dims(1, 2)


def tokenize_all(tokenizer: Tokenizer, texts: Sequence[str], batch: int = 8192) -> np.ndarray:
    """The pieces of any number of texts, a batch at a time.

    Returns:
        int32 [texts, max_pieces].
    """
    # The signature keeps the last, smaller batch from being traced again.
    tokenize = tf.function(tokenizer, input_signature=[tf.TensorSpec([None], tf.string)])
    pieces = np.empty([len(texts), tokenizer.max_pieces], np.int32)
    for start in range(0, len(texts), batch):
        # Strings are never on an accelerator; what goes with them would be sent there and back.
        with tf.device("CPU:0"):
            pieces[start : start + batch] = tokenize(tf.constant(texts[start : start + batch]))
    return pieces


def text_towers(
    dim: int,
    vocabulary: int = 65_536,
    max_pieces: int = 64,
    width: int = 64,
    hidden: int = 128,
    dropout: float = 0.0,
    seed: int = 0,
) -> tuple[keras.Model, keras.Model]:
    """A query tower and a target tower over the pieces of a `Tokenizer`.

    Each is the mean of the piece embeddings, normalised, through a perceptron with a linear
    shortcut. The embedding table is one weight that both train; the rest is each tower's own. The
    same seed gives the same initial weights.

    What is not kept: towers saved one by one load with a table each.

    Args:
        dim: Size of an encoding.
        vocabulary, max_pieces: As for the tokenizer.
        width: Size of a piece's embedding.
        hidden: Units of the perceptron.
        dropout: Share of a query's normalised mean that is left out in training.
        seed: Of the initial weights, not negative.

    Returns:
        (query_tower, target_tower): models from int32 [batch, max_pieces] to float32 [batch, dim]
        with unit norm.
    """
    seeds = _seeds(seed)
    table = PieceMean(vocabulary, width, seed=next(seeds), name="pieces")

    def dense(units, **kwargs):
        initializer = keras.initializers.GlorotUniform(seed=next(seeds))
        return keras.layers.Dense(units, kernel_initializer=initializer, **kwargs)

    def tower(name, dropout):
        pieces = keras.Input([max_pieces], dtype="int32")
        mean = keras.layers.LayerNormalization()(table(pieces))
        if dropout:
            mean = keras.layers.Dropout(dropout, seed=next(seeds))(mean)
        inner = dense(hidden, activation="gelu")(mean)
        encoding = keras.layers.add([dense(dim)(inner), dense(dim, use_bias=False)(mean)])
        return keras.Model(pieces, keras.layers.UnitNormalization()(encoding), name=name)

    # Queries only: what a step makes of targets then serves the index as it is, with no second pass.
    return tower("query_tower", dropout), tower("target_tower", 0.0)


def id_towers(
    num_queries: int, num_targets: int, dim: int, seed: int = 0
) -> tuple[keras.Model, keras.Model]:
    """A query tower and a target tower that know each query and target by its number alone.

    The same seed gives the same initial weights.

    Returns:
        (query_tower, target_tower): models from int32 [batch], numbers below `num_queries` and
        `num_targets`, to float32 [batch, dim] with unit norm.
    """
    seeds = _seeds(seed)

    def tower(rows, name):
        ids = keras.Input([], dtype="int32")
        initializer = keras.initializers.RandomNormal(stddev=0.1, seed=next(seeds))
        embedding = keras.layers.Embedding(rows, dim, embeddings_initializer=initializer)(ids)
        return keras.Model(ids, keras.layers.UnitNormalization()(embedding), name=name)

    return tower(num_queries, "query_tower"), tower(num_targets, "target_tower")


class IdLookup(tf.Module):
    """Numbers identifiers in the order given; one that is unknown gets the number after the last.

    Args:
        identifiers: distinct strings.
    """

    def __init__(self, identifiers: Iterable[str]):
        super().__init__()
        keys = tf.constant(list(identifiers))
        self._table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(keys, tf.range(tf.size(keys))), tf.size(keys)
        )

    def __call__(self, texts):
        """int32 [batch] from string [batch]."""
        return self._table.lookup(texts)


@keras.utils.register_keras_serializable(package="tf_dynidx")
class PieceMean(keras.layers.Layer):
    """The mean embedding of a text's pieces; zero for a text of padding alone.

    int32 [batch, pieces], 0 = padding, to float32 [batch, width].

    Args:
        vocabulary: Number of ids, padding included.
        width: Size of a piece's embedding.
        seed: Of the initial embeddings.
    """

    def __init__(self, vocabulary: int, width: int, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary = vocabulary
        self.width = width
        self.seed = seed

    def build(self, input_shape):
        self.table = self.add_weight(
            shape=(self.vocabulary, self.width),
            initializer=keras.initializers.RandomNormal(stddev=0.1, seed=self.seed),
            name="table",
        )
        super().build(input_shape)

    def call(self, ids):
        embeddings = tf.gather(self.table, ids)
        mask = tf.cast(ids > 0, embeddings.dtype)
        # One contraction: the embeddings are the largest tensor of a step, and need no masked copy.
        total = tf.einsum("blv,bl->bv", embeddings, mask)
        return total / tf.maximum(tf.reduce_sum(mask, axis=1, keepdims=True), 1.0)

    def get_config(self):
        config = {"vocabulary": self.vocabulary, "width": self.width, "seed": self.seed}
        return super().get_config() | config


def _seeds(seed: int):
    """Yields seeds of their own for the initializers: two with one seed would draw one matrix."""
    generator = np.random.default_rng(seed)
    while True:
        yield int(generator.integers(2**31))
