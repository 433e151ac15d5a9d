"""The protocol that every miner follows."""

import functools

import tensorflow as tf

from tf_dynidx import replicas
from tf_dynidx.index import checks
from tf_dynidx.index.integers import Integers
from tf_dynidx.ops import table_draws
from tf_dynidx.ops.membership import is_among

_BLOCK = 2048  # targets that a step encodes together


class Miner(tf.Module):
    """Draws negatives for the queries of a batch, and says how likely each draw was.

    A training step calls, in this order, `mine`, `log_prob` and, after the gradients are applied,
    `observe_positives` and `observe`. They run inside the step's `tf.function`, compiled by XLA or not:
    static shapes, no strings. State is kept in `tf.Variable`s, made in `make_state`.

    In a step of several replicas (`tf.distribute`) `mine` and `log_prob` are about the replica's own
    queries, the rows asked about and all that is observed are of all replicas. State is one copy a
    replica; all change alike, as long as it follows from what is observed and not from what was drawn.

    Attributes:
        num_negatives: int, draws a query.
        num_targets: int, targets of the corpus, once it is built.
        dim: int, the dimension of the encodings, once it is built.
        full_encodes: how often all targets were encoded at once: int64 variable, once it is built.
        rows_encoded: how many target rows the miner has had encoded, repeats and full encodes
            included: int64 variable, once it is built. What a step encodes for its loss is not counted.
    """

    def __init__(self, num_negatives, seed=0, name=None):
        """Checks and keeps what all miners share.

        Args:
            num_negatives: int, draws a query.
            seed: int, seeds every draw.

        Raises:
            ValueError: num_negatives is not a whole number of at least 1, or the seed none from 0 on.
        """
        super().__init__(name=name)
        self.num_negatives = checks.positive_int("num_negatives", num_negatives)
        self.seed = checks.seed(seed)
        self.full_encodes = self.rows_encoded = 0
        self.built = False
        self._first_call = 0

    def build(self, corpus, encode_rows, encode_corpus, dim=None):
        """Makes the state; called once, eagerly, before the first step. Not to be overridden.

        Args:
            corpus: the `TargetCorpus`.
            encode_rows: function from int32 [rows] to float32 [rows, dim], the rows encoded afresh in
                inference mode; may be called inside a step.
            encode_corpus: function without arguments that encodes all targets eagerly, showing
                progress: float32 [targets, dim]. None: the state is made, to be filled from a file.
            dim: int, the dimension of the encodings; default: that of a row that is encoded to see.

        Raises:
            ValueError: more negatives than targets.
        """
        self.check_fits(corpus)
        self.num_targets = corpus.size
        self.dim = int(encode_rows(tf.range(1)).shape[1] if dim is None else dim)
        # Not before: a tower may make its weights with the first row that it encodes.
        with replicas.copied():
            self._make_variables(corpus, encode_rows, encode_corpus)
        self.built = True

    def _make_variables(self, corpus, encode_rows, encode_corpus):
        self._calls = Integers(self._first_call, "calls")
        self.full_encodes = tf.Variable(0, trainable=False, name="full_encodes", dtype=tf.int64)
        self.rows_encoded = tf.Variable(0, trainable=False, name="rows_encoded", dtype=tf.int64)
        # A checkpoint that was restored before fills variables as they are made: then there is
        # nothing to encode.
        restored = self.rows_encoded.numpy() > 0

        def encode_counted(rows):
            self.rows_encoded.assign_add(tf.size(rows, out_type=tf.int64))
            return encode_rows(rows)

        def encode_corpus_counted():
            self.full_encodes.assign_add(1)
            self.rows_encoded.assign_add(self.num_targets)
            return encode_corpus()

        self.encode_rows = encode_counted
        fill = encode_corpus is not None and not restored
        self.make_state(corpus, encode_corpus_counted if fill else None)

    def check_fits(self, corpus):
        """Raises a ValueError where there are more negatives than targets."""
        if self.num_negatives > corpus.size:
            raise ValueError(
                "More negatives than targets: use at most as many as the corpus holds. "
                f"Received: num_negatives={self.num_negatives}, {corpus.size} targets"
            )

    def make_state(self, corpus, encode_corpus):
        """Makes the variables of a method: what `build` calls. Default: none.

        `self.encode_rows`, `num_targets` and `dim` are set. What is encoded is counted.

        Args:
            corpus: the `TargetCorpus`.
            encode_corpus: as for `build`. None: variables are made with any value, and nothing is
                encoded.
        """
        del corpus, encode_corpus

    def mine(self, queries, beta, positives):
        """Draws negatives.

        Args:
            queries: float32 [queries, dim], encodings, without gradient.
            beta: float32 scalar, the inverse temperature.
            positives: int32 [queries, positives], known positives padded with -1.

        Returns:
            (rows, drawn): int32 [queries, num_negatives] with replacement, and whatever `log_prob`
            needs to know about the draw. A row that is a known positive may come back: the loss
            masks it.
        """
        raise NotImplementedError

    def log_prob(self, rows, queries, beta, positives, drawn):
        """Log probability that one draw for each query is each of the given rows.

        Args:
            rows: int32 [rows].
            queries, beta, positives: as for `mine`.
            drawn: what `mine` returned second.

        Returns:
            float32 [queries, rows], or [1, rows] if all queries, also those of other replicas, draw
            alike; -inf for a row that a query cannot draw.
        """
        raise NotImplementedError

    def own_log_prob(self, rows, queries, beta, positives, drawn):
        """Log probability that one draw for a query is each of the rows that were drawn for it.

        By default what `log_prob` says of all rows and all queries, of which each query's own are
        taken: queries times as much as is wanted, unless all queries draw alike. A miner that can
        tell of each query's own rows alone overrides it.

        Args:
            rows: int32 [queries, draws].
            queries, beta, positives, drawn: as for `log_prob`.

        Returns:
            float32 [queries, draws]; -inf for a row that the query cannot draw.
        """
        log_prob = self.log_prob(tf.reshape(rows, [-1]), queries, beta, positives, drawn)
        if log_prob.shape[0] == 1:
            return tf.reshape(log_prob, tf.shape(rows))
        number, draws = tf.shape(rows)[0], tf.shape(rows)[1]
        log_prob = tf.reshape(log_prob, [number, number, draws])
        return tf.gather(log_prob, tf.range(number), axis=1, batch_dims=1)

    def observe_positives(self, rows, weights):
        """Takes in the positives that the step has trained on. Default: nothing to do.

        Args:
            rows: int32 [queries].
            weights: float32 [queries], 1, or 0 where a query has no positive and the row stands for
                nothing.
        """
        del rows, weights

    def observe(self, rows, encodings):
        """Takes in encodings that the step has made anyway. Default: nothing to do.

        Args:
            rows: int32 [rows], possibly with repeats; -1 for what is no row of the corpus.
            encodings: float32 [rows, dim], encoded in inference mode.
        """
        del rows, encodings

    def logs(self):
        """Numbers to log after a step: dict of name to float32 scalar. Default: none."""
        return {}

    def look(self):
        """Looks at the state between two steps, eagerly, now and then; may warn. Default: nothing."""

    def encode_all(self):
        """Encodes all targets inside a step, some at a time: float32 [targets, dim]."""
        self.full_encodes.assign_add(1)
        blocks = -(-self.num_targets // _BLOCK)
        block = -(-self.num_targets // blocks)
        rows = tf.minimum(tf.range(blocks * block), self.num_targets - 1)
        table = tf.map_fn(
            self.encode_rows,
            tf.reshape(rows, [blocks, block]),
            fn_output_signature=tf.TensorSpec([block, self.dim], tf.float32),
            parallel_iterations=1,
        )
        return tf.reshape(table, [blocks * block, self.dim])[: self.num_targets]

    def next_seed(self):
        """int32 [2], a seed not used before, nor by another replica."""
        seed = tf.stack([tf.constant(self.seed, tf.int32), self._calls.assign_add(1)])
        return replicas.seed_apart(seed)

    def get_config(self):
        """The constructor's arguments."""
        return {"num_negatives": self.num_negatives, "seed": self.seed}

    @classmethod
    def from_config(cls, config):
        """A miner of the same arguments, without state."""
        return cls(**config)


def softmax_draw(read, size, queries, beta, excluded, num_draws, seed):
    """Draws from a softmax over a table, by looking at all of it: as `ops.table_draws.draw`.

    Args:
        read: function from int32 [rows] to float32 [rows, dim], what the table holds.
        size: int, how many of its rows, the first, take part.
        queries, beta: as for `Miner.mine`.
        excluded, num_draws, seed: as for `ops.table_draws.draw`.
    """
    scores = functools.partial(table_draws.inner_products, read, beta * queries)
    return table_draws.draw(scores, size, excluded, num_draws, seed)


def softmax_log_prob(read, rows, queries, beta, positives, log_partition):
    """Log probabilities of a softmax over a table, known positives left out.

    Args:
        read: function from int32 [rows] to float32 [rows, dim], what the table holds.
        rows: int32 [rows], asked of every query; or [queries, rows], where each has its own.
        queries, beta, positives: as for `Miner.mine`.
        log_partition: float32 [queries].

    Returns:
        float32 [queries, rows]; -inf where a row is a known positive of the query.
    """
    scores = table_draws.inner_products(read, queries, rows)
    rows = rows[None] if rows.shape.rank == 1 else rows
    return without_positives(beta * scores - log_partition[:, None], rows, positives)


def without_positives(log_prob, rows, positives):
    """-inf where a row, int32 [1 or queries, rows], is a known positive: float32 [queries, rows]."""
    return tf.where(is_among(rows, positives), -float("inf"), log_prob)
