"""Softmax over the whole corpus, estimated from a sample of it whose probabilities are known."""

import tensorflow as tf


def sampled_softmax(logits, positives, log_expected, masked):
    """Cross-entropy of the softmax over all targets, estimated from candidates.

    The partition function of a query is exp(positive's logit) plus the sum over all other targets;
    the latter is estimated by sum_j exp(logit_j) / E_j over the candidates j, where E_j is how often
    target j was to be expected among the candidates. That estimate is unbiased for any way of drawing
    that gives every target a chance, repeats included, so the loss is a consistent estimate of the
    full softmax loss (Bengio and Senecal 2008, with the balance heuristic of Veach and Guibas 1995
    over the sources of candidates).

    Args:
        logits: float32 [queries, candidates], beta q.g.
        positives: int32 [queries], which candidate is the query's positive. It stands for itself:
            its own expected count is not used.
        log_expected: float32 [candidates], log E_j; or [queries, candidates], where every query has
            candidates of its own.
        masked: bool [queries, candidates], candidates that count as absent for a query: its known
            positives, repeats of the own one included. The own positive is never masked.

    Returns:
        float32 [queries].
    """
    own = tf.one_hot(positives, tf.shape(logits)[1], on_value=True, off_value=False)
    corrected = tf.where(own, logits, logits - log_expected)
    corrected = tf.where(masked & ~own, -float("inf"), corrected)
    positive = tf.reduce_sum(tf.where(own, logits, 0.0), axis=1)
    return tf.reduce_logsumexp(corrected, axis=1) - positive


def log_expected_counts(log_prob, draws, log_frequency, batch, given=None):
    """How often each candidate was to be expected among all candidates of the batch, in logs.

    log E_j = log(draws * sum_b p_b(j) + (batch - 1) * frequency(j)): mined draws of every query of
    the batch, and the positives of the other queries.

    Args:
        log_prob: float32 [queries, candidates] or [1, candidates], log probability that one draw for
            a query is that candidate; -inf if it cannot be.
        draws: int, draws a query; 0 if nothing is mined.
        log_frequency: float32 [candidates], log probability that the positive of a training example
            is that candidate.
        batch: int32 scalar, queries in the batch.
        given: int32 scalar, candidates that the batch brings itself, where that is not one for each
            query; default: `batch`.

    Returns:
        float32 [candidates].
    """
    size = tf.cast(batch, tf.float32)
    others = (size if given is None else tf.cast(given, tf.float32)) - 1.0
    in_batch = tf.math.log(tf.maximum(others, 1e-6)) + log_frequency
    if draws == 0:
        return in_batch
    if log_prob.shape[0] == 1:  # one distribution for all queries
        mined = log_prob[0] + tf.math.log(size)
    else:
        mined = tf.reduce_logsumexp(log_prob, axis=0)
    mined = mined + tf.math.log(float(draws))
    return tf.reduce_logsumexp(tf.stack([mined, in_batch]), axis=0)


def log_expected_own_counts(log_prob, draws):
    """How often each candidate was to be expected among a query's own draws, in logs.

    Args:
        log_prob: float32 [queries, draws], log probability that one draw for a query is each of the
            rows drawn for it (`Miner.own_log_prob`).
        draws: int, draws a query.

    Returns:
        float32 [queries, draws], log(draws * p_b(j)) for the draws j of query b.
    """
    return log_prob + tf.math.log(float(draws))
