"""The exact best targets by inner product, block by block: memory does not grow with the corpus."""

import tensorflow as tf


def exact_top_k(queries, embeddings, k, block_size=65_536):
    """The k targets with the highest inner product, best first; of equals, the lower row first.

    Scores are held for one block of targets at a time: float32 [queries, max(block_size, k)], not
    [queries, targets].

    Args:
        queries: float32 [queries, dim].
        embeddings: float [targets, dim], tensor or variable; the number of targets is static.
        k: int, at most the number of targets.
        block_size: int, targets that are scored at a time.

    Returns:
        (scores, rows): float32 [queries, k] and int32 [queries, k].

    Raises:
        ValueError: If there are fewer than k targets, or if k or block_size is below 1.
    """
    embeddings = tf.convert_to_tensor(embeddings)
    targets = embeddings.shape[0]
    if not 1 <= k <= targets:
        raise ValueError(f"k is from 1 to the number of targets. Received: k={k}, {targets=}")
    if block_size < 1:
        raise ValueError(f"A block holds at least one target. Received: {block_size=}")
    # From k upwards, the first block alone fills the list, which thus never holds a placeholder.
    block_size = min(max(block_size, k), targets)

    def best_of_block(start, size):
        block = tf.cast(tf.slice(embeddings, [start, 0], [size, -1]), tf.float32)
        scores, places = tf.math.top_k(tf.matmul(queries, block, transpose_b=True), min(k, size))
        return scores, start + places

    def merged(best, later):
        # top_k prefers the earlier of equals, and the rows in `best` are the lower ones.
        scores, places = tf.math.top_k(tf.concat([best[0], later[0]], axis=1), k)
        rows = tf.gather(tf.concat([best[1], later[1]], axis=1), places, batch_dims=1)
        return scores, rows

    best = best_of_block(0, block_size)
    blocks, remainder = divmod(targets, block_size)
    if blocks > 1:
        _, best = tf.while_loop(
            lambda block, best: block < blocks,
            lambda block, best: (
                block + 1,
                merged(best, best_of_block(block * block_size, block_size)),
            ),
            (1, best),
            parallel_iterations=1,  # otherwise several blocks are scored ahead of their turn
        )
    if remainder:
        best = merged(best, best_of_block(blocks * block_size, remainder))
    return best
