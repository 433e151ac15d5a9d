"""Negatives drawn from a softmax over encodings that are all made anew every so many steps."""

import functools

import tensorflow as tf

from tf_dynidx.index import checks
from tf_dynidx.index.integers import Integers
from tf_dynidx.miners.miner import Miner, softmax_draw, softmax_log_prob
from tf_dynidx.ops.in_place import do_if


class Stale(Miner):
    """Draws from the softmax over encodings of up to `refresh_every` steps ago.

    That is the index of ANCE (Xiong et al., "Approximate Nearest Neighbor Negative Contrastive Learning
    for Dense Text Retrieval", ICLR 2021), which is right when it is built and then falls behind. All
    targets are encoded before the first step and after every `refresh_every` steps; nothing is
    corrected in between. ANCE takes negatives from the top of its index; here they are drawn from its
    softmax, as by all miners that look at scores, and exactly: looking through the whole table takes
    nothing away from the method but time.

    A refresh happens within a step, and in the one process, while ANCE encodes on other machines
    beside the training. Memory: targets * dim float32 numbers, and as many once more in a refresh.
    """

    def __init__(self, num_negatives=2, refresh_every=250, seed=0, name=None):
        """Makes a miner.

        Args:
            num_negatives: int, draws a query.
            refresh_every: int, training steps from one full encode to the next.
            seed: int, seeds every draw.

        Raises:
            ValueError: an argument is not a whole number of at least 1.
        """
        super().__init__(num_negatives, seed, name)
        self.refresh_every = checks.positive_int("refresh_every", refresh_every)

    def make_state(self, corpus, encode_corpus):
        table = tf.zeros([corpus.size, self.dim])
        self.table = tf.Variable(table, trainable=False, name="table")
        self.age = Integers(0, "age")  # steps since it was filled
        if encode_corpus is not None:
            self.table.assign(encode_corpus())

    def mine(self, queries, beta, positives):
        read = functools.partial(tf.gather, self.table)
        number, seed = self.num_negatives, self.next_seed()
        return softmax_draw(read, self.num_targets, queries, beta, positives, number, seed)

    def log_prob(self, rows, queries, beta, positives, drawn):
        read = functools.partial(tf.gather, self.table)
        return softmax_log_prob(read, rows, queries, beta, positives, drawn)

    def own_log_prob(self, rows, queries, beta, positives, drawn):
        return self.log_prob(rows, queries, beta, positives, drawn)

    def observe(self, rows, encodings):
        do_if(self.age.assign_add(1) >= self.refresh_every, self._refresh)

    def _refresh(self):
        self.table.assign(self.encode_all())
        self.age.assign(0)

    def get_config(self):
        return super().get_config() | {"refresh_every": self.refresh_every}
