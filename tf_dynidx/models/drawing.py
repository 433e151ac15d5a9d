"""For which queries of a batch negatives are drawn, where all of its queries see what is drawn."""

import tensorflow as tf

from tf_dynidx import replicas


def drawing_queries(queries, positives, most):
    """At most so many queries of the global batch, spread evenly over it.

    What is drawn is shared, so that it is the number of draws that makes the estimate of the softmax
    good, and not for whom: in a large batch a part of the queries draws enough, and drawing for all of
    them would be most of the time of a step.

    Args:
        queries: float32 [queries, dim], those of this replica.
        positives: int32 [queries, positives].
        most: int, for how many negatives are drawn, on all replicas together.

    Returns:
        (queries, positives): the rows of both that belong to those.
    """
    most = -(-most // replicas.number())
    number = positives.shape[0]
    if number is None:
        number = tf.shape(positives)[0]
        some = tf.minimum(number, most)
    elif number <= most:
        return queries, positives
    else:
        some = most
    places = tf.range(some) * number // tf.maximum(some, 1)
    return tf.gather(queries, places), tf.gather(positives, places)
