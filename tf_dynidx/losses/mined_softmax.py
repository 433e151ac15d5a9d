"""`SampledSoftmax`: `sampled_softmax` as a Keras loss."""

import tensorflow as tf

from tf_dynidx.index import checks
from tf_dynidx.keras_world import keras
from tf_dynidx.losses.sampled_softmax import sampled_softmax


@keras.utils.register_keras_serializable(package="tf_dynidx")
class SampledSoftmax(keras.losses.Loss):
    """Cross-entropy of the softmax over all targets, estimated from candidates that were drawn.

    Each logit but the positive's is corrected for how often its target was to be expected among the
    candidates (see `losses.sampled_softmax`), which is given beside the logits:

        loss_of = SampledSoftmax(temperature=0.05)
        loss = loss_of(tf.range(batch), scores, log_expected=log_expected, masked=masked)

    Without it, as from `model.fit`, every candidate counts once: right if the candidates are all
    targets there are.

    Args:
        temperature: float > 0, what `y_pred` is divided by; default 1: it holds logits.
        reduction: as for any Keras loss.
        name: name of the loss.

    Raises:
        ValueError: temperature is not positive and finite.
    """

    def __init__(
        self,
        temperature=1.0,
        reduction="sum_over_batch_size",
        name="sampled_softmax",
        **kwargs,
    ):
        super().__init__(reduction=reduction, name=name, **kwargs)
        self.temperature = checks.positive_float("temperature", temperature)

    def __call__(self, y_true, y_pred, sample_weight=None, log_expected=None, masked=None):
        """The loss of a batch.

        Args:
            y_true: which candidate is the query's positive: int [batch] or [batch, 1], or one-hot
                [batch, candidates].
            y_pred: float [batch, candidates], scores.
            sample_weight: float [batch], as for any Keras loss.
            log_expected: float [candidates] or [batch, candidates], log of how often each candidate
                was to be expected among them: `losses.log_expected_counts` where the batch shares
                them, log(draws) + log_prob where they are a query's own. -inf for one that could not
                be drawn, which is left out. The positive's own entry is not used. Default: 0.
            masked: bool [batch, candidates], candidates that are left out for a query, such as its
                other positives; the positive never is. Default: none.

        Returns:
            float32, a scalar or [batch], as `reduction` says.

        Raises:
            ValueError: a shape is not as described.
        """
        given = {"scores": y_pred, "log_expected": log_expected, "masked": masked}
        given = {name: value for name, value in given.items() if value is not None}
        return super().__call__(y_true, given, sample_weight=sample_weight)

    def call(self, y_true, y_pred):
        given = y_pred if isinstance(y_pred, dict) else {"scores": y_pred}
        logits = tf.cast(given["scores"], tf.float32) / self.temperature
        if logits.shape.rank != 2:
            raise ValueError(
                f"y_pred must have shape [batch, candidates]. Received: shape {tuple(logits.shape)}"
            )
        log_expected = tf.cast(given.get("log_expected", tf.zeros_like(logits)), tf.float32)
        masked = tf.cast(given.get("masked", tf.zeros_like(logits)), tf.bool)
        masked |= tf.math.is_inf(log_expected)
        log_expected = tf.where(tf.math.is_inf(log_expected), 0.0, log_expected)
        return sampled_softmax(logits, _positives(y_true, logits), log_expected, masked)

    def get_config(self):
        return super().get_config() | {"temperature": self.temperature}


def _positives(y_true, logits):
    """Which candidate is each query's positive: int32 [batch]."""
    y_true = tf.convert_to_tensor(y_true)
    rank, width = y_true.shape.rank, y_true.shape[-1] if y_true.shape.rank else None
    if rank == 1:
        return tf.cast(y_true, tf.int32)
    if rank == 2 and width == 1:
        return tf.cast(y_true[:, 0], tf.int32) if logits.shape[1] != 1 else _first(y_true)
    if rank == 2 and (width is None or logits.shape[1] in (None, width)):
        return tf.argmax(y_true, axis=1, output_type=tf.int32)
    raise ValueError(
        "y_true must be indices [batch] or [batch, 1], or one-hot [batch, candidates]. "
        f"Received: shape {tuple(y_true.shape)} for {logits.shape[1]} candidates"
    )


def _first(y_true):
    """Of one candidate, an index and a one-hot vector say the same."""
    return tf.zeros([tf.shape(y_true)[0]], tf.int32)
