"""Laying out an empty tree: rows halved until a block of them fits memory, then grouped by k-means."""

import math

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_dynidx.index.tree import CROWDED_GROUP, CROWDED_LEAF, FANOUT, GROUP, LEAF_SIZE, regrouped
from tf_dynidx.ops import grouping, nodes, routing
from tf_dynidx.ops.nodes import NEVER

BLOCK = 65_536  # rows that are grouped at a time
_SAMPLE = 4096  # rows that show how a set is to be halved
_FILL = 0.625  # share of a group's slots that a build fills
_UPPER_FILL = 14  # nodes that a build puts into a node of level 2 and above, of 16 places
_LLOYD = 6  # k-means iterations that make groups of a block
_LLOYD_ALL = 2  # k-means iterations over all leaves of a block
_LEAF_ROWS = CROWDED_LEAF - 2  # rows that a build puts into a leaf, at most
_CHOICES = 4  # nearest leaves that a row tries before it takes any place
_CHUNK = 4096  # rows that are compared with all leaves of a block at a time


def build(tree, ids, embeddings, progress=False):
    """Fills an empty tree.

    A set of rows larger than a block is halved across its longest direction, and again, by the order
    of its projections; a block's rows become groups, and each group's rows leaves, by k-means. Beside
    rows and tree it holds 20 bytes for each row and what a block takes, about 10 kB a row at dimension
    64: some 700 MB, however many rows there are.

    Args:
        tree: an empty `tf_dynidx.index.tree.Tree`.
        ids: int32 NumPy array [rows], distinct.
        embeddings: float NumPy array [rows, dim]; read a block at a time, so it may be a memmap.
        progress: bool, whether to show a bar.
    """
    number = len(ids)
    blocks = math.ceil(number / BLOCK)
    while blocks * _groups(number, blocks) > tree.num_groups:  # rounded up once for each block
        blocks -= 1
    order = np.arange(number, dtype=np.int32)
    rng = np.random.default_rng(0)
    # All blocks have one shape, which is compiled once.
    size = math.ceil(number / blocks)
    groups = _groups(number, blocks)
    deep = len(tree.widths) > 2
    # A block gets nodes of level 2 to itself, unless there are too few of them.
    parents = math.ceil(groups / _UPPER_FILL)
    apart = deep and blocks * parents <= tree.widths[2]
    step = parents * FANOUT if apart else groups
    bar = {"desc": "building the tree", "unit": "row", "unit_scale": True, "disable": not progress}
    with tqdm(total=number, **bar) as bar:
        for block, chosen in enumerate(_halved(embeddings, order, blocks, rng)):
            chosen = rng.permutation(chosen)  # k-means starts from rows at equal distances
            rows = np.zeros([size, tree.dim], np.float32)
            rows[: len(chosen)] = embeddings[chosen]
            names = np.full(size, NEVER, np.int32)
            names[: len(chosen)] = ids[chosen]
            rows, names = _grouped(tf.constant(rows), tf.constant(names), groups)
            places = tf.range(groups)
            if deep:
                places = _side_by_side(rows, names, parents)
                places = places if apart else tf.argsort(tf.argsort(places))
            places += block * step
            tree.fill(places, rows, names)
            tree.refresh_groups(places)
            bar.update(len(chosen))
    tree.refresh_above()


@tf.function(autograph=False)
def _grouped(rows, ids, groups):
    """A block's rows in groups and their leaves: [groups, 512, dim] and [groups, 512]."""
    live = ids != NEVER
    target = grouping.group(rows[None], live[None], groups, CROWDED_GROUP, _LLOYD)
    place = grouping.lay_out(target, live[None], groups, GROUP)[0]
    laid, names = _laid_out(rows, ids, place)
    laid, names = regrouped(tf.reshape(laid, [groups, GROUP, -1]), tf.reshape(names, [groups, GROUP]))
    leaves = groups * FANOUT
    laid, names = tf.reshape(laid, [leaves, LEAF_SIZE, -1]), tf.reshape(names, [leaves, LEAF_SIZE])
    centres = nodes.statistics(laid, names != NEVER).moments[:, : rows.shape[1]]
    # A row's nearest leaf is often one of another group: k-means goes on over all leaves at once.
    for _ in range(_LLOYD_ALL):
        nearest = tf.where(live, _nearest(rows, centres, 1)[1][:, 0], leaves)
        count = tf.math.unsorted_segment_sum(tf.ones_like(nearest, tf.float32), nearest, leaves + 1)
        total = tf.math.unsorted_segment_sum(rows, nearest, leaves + 1)[:-1]
        count = count[:-1, None]
        centres = tf.where(count > 0, total / tf.maximum(count, 1.0), centres)
    near, choices = _nearest(rows, centres, min(_CHOICES, leaves))
    near = grouping.nearness(near[:, 0], rows)
    target = grouping.assign(near[None], choices[None], live[None], leaves, _LEAF_ROWS)
    place = grouping.lay_out(target, live[None], leaves, LEAF_SIZE)[0]
    laid, names = _laid_out(rows, ids, place)
    return tf.reshape(laid, [groups, GROUP, -1]), tf.reshape(names, [groups, GROUP])


def _laid_out(rows, ids, place):
    rows = tf.gather(tf.pad(rows, [[0, 1], [0, 0]]), place)
    return rows, tf.gather(tf.pad(ids, [[0, 1]], constant_values=NEVER), place)


def _nearest(rows, centres, number):
    """The `number` nearest centres of each row, some rows at a time: closeness and indices."""
    size = rows.shape[0]
    chunk = min(size, _CHUNK)
    chunks = -(-size // chunk)
    padded = tf.pad(rows, [[0, chunks * chunk - size], [0, 0]])

    def of_part(part):
        closeness = grouping.closeness(part[None], centres[None])[0]
        if number > 1:
            best = routing.places_of_largest(closeness, number)
        else:
            best = tf.argmax(closeness, axis=1, output_type=tf.int32)[:, None]  # faster than top_k
        return tf.gather(closeness, best, batch_dims=1), best

    near, which = tf.map_fn(
        of_part,
        tf.reshape(padded, [chunks, chunk, -1]),
        fn_output_signature=(
            tf.TensorSpec([chunk, number], tf.float32),
            tf.TensorSpec([chunk, number], tf.int32),
        ),
        parallel_iterations=1,
    )
    return tf.reshape(near, [-1, number])[:size], tf.reshape(which, [-1, number])[:size]


@tf.function(autograph=False)
def _side_by_side(rows, ids, parents):
    """Places for groups, such that those of one node of level 2 lie close together: int32 [groups]."""
    live = tf.cast(ids != NEVER, tf.float32)
    number = tf.maximum(tf.reduce_sum(live, axis=1, keepdims=True), 1.0)
    centres = tf.matmul(live[:, None, :], rows)[:, 0] / number
    groups = rows.shape[0]
    everyone = tf.ones([1, groups], tf.bool)
    target = grouping.group(centres[None], everyone, parents, FANOUT, _LLOYD)
    order = grouping.lay_out(target, everyone, parents, FANOUT)[0]
    place = tf.scatter_nd(order[:, None], tf.range(parents * FANOUT), [groups + 1])
    return place[:groups]


def _groups(number, blocks):
    """Groups that one of `blocks` blocks of rows takes."""
    return math.ceil(math.ceil(number / blocks) / (GROUP * _FILL))


def _halved(embeddings, order, blocks, rng):
    """Yields sets of rows that lie close together, `blocks` of about equal size; reorders `order`."""
    pending = [(0, len(order), blocks)]
    while pending:
        start, end, parts = pending.pop()
        mine = order[start:end]
        if parts == 1:
            yield mine
            continue
        sample = mine[rng.integers(len(mine), size=min(_SAMPLE, len(mine)))]
        sample = np.asarray(embeddings[sample], np.float32)
        direction = _direction(tf.constant(sample[None])).numpy()[0]
        along = np.empty(len(mine), np.float32)
        for first in range(0, len(mine), BLOCK):
            block = np.asarray(embeddings[mine[first : first + BLOCK]], np.float32)
            along[first : first + BLOCK] = block @ direction
        lower = parts // 2
        middle = len(mine) * lower // parts
        mine[:] = mine[np.argpartition(along, middle)]
        pending.append((start + middle, end, parts - lower))
        pending.append((start, start + middle, lower))


@tf.function(autograph=False)
def _direction(sample):
    return grouping.principal_direction(sample, tf.ones(tf.shape(sample)[:2], tf.bool))
