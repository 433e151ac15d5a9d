"""How often each target is a positive, learned from the training examples as they come."""

import tensorflow as tf

from tf_dynidx import replicas
from tf_dynidx.index.placement import check_for_variables, kept, where_kept


class PositiveFrequencies(tf.Module):
    """Running counts of positives, smoothed by one imagined example for each target."""

    def __init__(self, num_targets, placement="device", name=None):
        super().__init__(name=name)
        check_for_variables(placement)
        self.placement = placement
        with replicas.copied(), kept(placement):
            self.counts = tf.Variable(tf.zeros([num_targets]), trainable=False, name="counts")
            self.total = tf.Variable(0.0, trainable=False, name="total")

    @where_kept
    def log_frequency(self, rows):
        """Log share of examples whose positive is each of the given rows: float32 [rows]."""
        imagined = float(self.counts.shape[0])
        return tf.math.log(tf.gather(self.counts, rows) + 1.0) - tf.math.log(self.total + imagined)

    @where_kept
    def are_labelled(self, rows):
        """Whether each of the given rows has been a positive: bool, of their shape."""
        return tf.gather(self.counts, rows) > 0.0

    @where_kept
    def observe(self, rows, weights):
        """Counts positives of all replicas: int32 [rows], float32 [rows], 0 for an example without."""
        self.counts.scatter_nd_add(rows[:, None], weights)
        self.total.assign_add(tf.cast(tf.size(weights), tf.float32))
