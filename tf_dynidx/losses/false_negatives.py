"""Candidates that are probably positives nobody has labelled: not to be pushed away."""

import tensorflow as tf


def suspected_positives(
    scores,
    positive_scores,
    absent,
    relative_margin=None,
    absolute_margin=None,
    max_score=None,
    range_min=0,
):
    """Which candidates are too good to be taken for negatives.

    The rules have the names and the meaning of `mine_hard_negatives` of sentence-transformers; a
    candidate is suspected as soon as one of them says so. With p the score of the query's positive
    and s that of the candidate, both without temperature:

    - `relative_margin`: s > p - relative_margin |p|. With 0.05, a negative has at most 95 % of the
      positive's score (NV-Retriever's setting).
    - `absolute_margin`: s > p - absolute_margin.
    - `max_score`: s > max_score.
    - `range_min`: fewer than `range_min` candidates of the query score higher. A target that is
      several times among the candidates counts as often, and equal scores share their rank.

    Args:
        scores: float32 [queries, candidates], q.g.
        positive_scores: float32 [queries], of the positive that the query is trained on.
        absent: bool [queries, candidates], candidates without a rank, since they count as absent
            anyway: known positives.
        relative_margin: float or None (default), for no such rule.
        absolute_margin: float or None (default).
        max_score: float or None (default).
        range_min: int, default 0: no such rule.

    Returns:
        bool [queries, candidates].
    """
    suspected = tf.zeros_like(absent)
    positive_scores = positive_scores[:, None]
    if relative_margin is not None:
        suspected |= scores > positive_scores - relative_margin * tf.abs(positive_scores)
    if absolute_margin is not None:
        suspected |= scores > positive_scores - absolute_margin
    if max_score is not None:
        suspected |= scores > max_score
    if range_min:
        ranked = tf.where(absent, -float("inf"), scores)
        number = ranked.shape[1] if ranked.shape[1] is not None else tf.shape(ranked)[1]
        best = tf.math.top_k(ranked, tf.minimum(range_min, number)).values
        suspected |= ranked >= best[:, -1:]
    return suspected
