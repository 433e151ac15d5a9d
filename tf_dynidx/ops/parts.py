"""Work that is done a part at a time, so that what it reads stays in the cache.

Reading 200 MB into one tensor takes five times as long as reading it in pieces, each into memory that
is in use already: fresh memory is mapped page by page.
"""

import tensorflow as tf

_FLOATS_AT_A_TIME = 2**20  # numbers that one part of the work reads: 4 MB, which stay in the cache


def at_a_time(floats):
    """int, how many entries make one part, of which each reads so many numbers."""
    return max(1, _FLOATS_AT_A_TIME // floats)


def in_parts(lengths, width, size, work, outputs):
    """What `work` makes of every entry of some lists, `size` entries at a time.

    Only entries that there are cost work, though shapes are static.

    Args:
        lengths: int32 [lists], entries of each, at most `width`.
        width: int, the most entries a list can have.
        size: int, entries that are worked on together.
        work: function from (owner, place, part) to a tuple of tensors [size, ...]: int32 [size], which
            list an entry is of and where in it; int32 scalar, the number of the part. What it makes of
            entries beyond the end is not looked at.
        outputs: list of (dtype, shape of an entry), of what `work` returns.

    Returns:
        tuple of tensors [lists, width, ...]; anything from a list's length on.
    """
    lists = lengths.shape[0]
    if lists is None:
        # Few entries of a batch of any size are not worked on as many; what is made is filled up.
        lists = tf.shape(lengths)[0]
        used = tf.clip_by_value(lists * width, 1, size)
    else:
        used = size = max(1, min(size, lists * width))
    ends = tf.cumsum(lengths)
    total = tf.reduce_sum(lengths)
    parts = -(-(lists * width) // used)

    def filled_up(value, shape):
        if tf.is_tensor(used):
            value = tf.pad(value, [[0, size - used], *[[0, 0]] * len(shape)])
        return tf.ensure_shape(value, [size, *shape])

    def take_part(part, tables):
        entry = part * used + tf.range(used)
        owner = tf.minimum(tf.searchsorted(ends, entry, side="right"), lists - 1)
        place = tf.minimum(entry - tf.gather(ends - lengths, owner), width - 1)
        made = work(owner, place, part)
        return part + 1, [
            table.write(part, filled_up(value, shape))
            for table, value, (_, shape) in zip(tables, made, outputs, strict=True)
        ]

    _, tables = tf.while_loop(
        lambda part, _: part * used < total,
        take_part,
        (
            tf.constant(0),
            [
                tf.TensorArray(dtype, size=parts, element_shape=[size, *shape])
                for dtype, shape in outputs
            ],
        ),
        parallel_iterations=1,
    )
    where = tf.minimum((ends - lengths)[:, None] + tf.range(width), parts * used - 1)
    where = where // used * size + where % used
    return tuple(
        tf.gather(tf.reshape(table.stack(), [parts * size, *shape]), where)
        for table, (_, shape) in zip(tables, outputs, strict=True)
    )


def in_blocks(arguments, size, work, outputs):
    """What `work` makes of blocks of up to `size` entries, joined.

    Args:
        arguments: list of tensors [entries, ...]; the last block is filled up with zeros.
        size: int, entries that are worked on together, at most.
        work: function from blocks of the arguments to a tuple of tensors [block, ...].
        outputs: list of (dtype, shape of an entry), of what `work` returns.

    Returns:
        tuple of tensors [entries, ...].
    """
    number = arguments[0].shape[0]
    if number is None:
        number = tf.shape(arguments[0])[0]
        size = tf.clip_by_value(number, 1, size)
    elif number <= size:
        return work(*arguments)
    blocks = tf.maximum(1, -(-number // size))
    length = None if tf.is_tensor(size) else size

    def cut(tensor):
        filled = tf.pad(tensor, [[0, blocks * size - number], *[[0, 0]] * (tensor.shape.rank - 1)])
        filled = tf.reshape(filled, tf.concat([[blocks, size], tf.shape(tensor)[1:]], axis=0))
        return tf.ensure_shape(filled, [None, length, *tensor.shape[1:]])

    made = tf.map_fn(
        lambda block: work(*block),
        tuple(map(cut, arguments)),
        fn_output_signature=tuple(tf.TensorSpec([length, *shape], dtype) for dtype, shape in outputs),
        parallel_iterations=1,
    )
    return tuple(
        tf.reshape(each, [-1, *shape])[:number] for each, (_, shape) in zip(made, outputs, strict=True)
    )
