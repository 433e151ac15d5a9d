"""Looking at an index: its figures, its memory, and whether every invariant holds."""

import numpy as np
import tensorflow as tf

from tf_dynidx.index.integers import Integers
from tf_dynidx.index.tree import FANOUT, GROUP, LEAF_SIZE
from tf_dynidx.ops.nodes import NEVER

_SLACK = 1e-4  # of float32 sums of rows, relative to their norms
_GROUPS = 256  # of level 1 that are looked at at a time


def stats(index):
    """See `DynamicIndex.stats`."""
    tree = index.tree
    levels = []
    for place, (level, width) in enumerate(zip(tree.levels, tree.widths, strict=True)):
        counts = level.counts.numpy()[:width]
        used = counts > 0
        radii = level.radii.numpy()[:width][used]
        spread = level.moments.numpy()[:width, tree.dim :].sum(axis=1)
        if place == 0:
            children = counts[used]
        else:
            below = tree.counts[place - 1].numpy()[: width * FANOUT].reshape(width, FANOUT)
            children = (below > 0).sum(axis=1)[used]
        levels.append(
            {
                "nodes": int(used.sum()),
                "places": width,
                "rows_mean": _mean(counts[used]),
                "rows_largest": int(counts.max(initial=0)),
                "children_mean": _mean(children),
                "radius_median": float(np.median(radii)) if used.any() else 0.0,
                "radius_largest": float(radii.max(initial=0.0)),
                "variance": float((counts * spread).sum() / max(counts.sum(), 1)),
            }
        )
    return {
        "size": index.size,
        "capacity": index.capacity,
        "levels": levels,
        "dense_level": tree.dense,
        "moved_rows": int(tree.moved.numpy()[: tree.capacity].sum()),
        "landmarks": int((index.landmarks.numpy() != NEVER).sum()),
        "staleness": index.staleness(),
    }


def memory(index):
    """See `DynamicIndex.memory`."""
    tree, reencoder = index.tree, index.reencoder
    others = {id(v) for v in (*tree.variables, reencoder.written.variable)}
    parts = {
        "rows": [tree.rows],
        "ids": [tree.ids, tree.slots],
        "statistics": [*(v for level in tree.levels for v in level)],
        "ages": [reencoder.written, tree.moved],
        "reencoder": [v for v in reencoder.variables if id(v) not in others],
    }
    sizes = {
        name: int(sum(np.prod(v.shape) * _held(v).dtype.size for v in variables))
        for name, variables in parts.items()
    }
    return sizes | {"total": sum(sizes.values())}


def _held(state):
    return state.variable if isinstance(state, Integers) else state


def check(index):
    """See `DynamicIndex.check`."""
    tree = index.tree
    ids, slots = tree.ids.numpy(), tree.slots.numpy()
    scratch = tree.widths[0] * LEAF_SIZE
    _must((ids[scratch:] == NEVER).all(), "scratch holds a row")
    held = np.flatnonzero(ids != NEVER)
    _must(((ids[held] >= 0) & (ids[held] < tree.capacity)).all(), "a slot holds an id out of range")
    _must(len(np.unique(ids[held])) == len(held), "a row is in two slots")
    _must((slots[ids[held]] == held).all(), "a row is noted at another slot than it is in")
    known = np.flatnonzero(slots[: tree.capacity] < scratch)
    _must(len(known) == len(held), "a row is noted at a slot that does not hold it")

    live = (ids != NEVER).reshape(-1, LEAF_SIZE)
    counts = live.sum(axis=1)
    _must((live == (np.arange(LEAF_SIZE) < counts[:, None])).all(), "a leaf has a gap")
    _must((counts == tree.counts[0].numpy()).all(), "a leaf's count is wrong")
    for place in range(1, len(tree.widths)):
        counts = counts.reshape(-1, FANOUT).sum(axis=1)
        _must((counts == tree.counts[place].numpy()).all(), f"a count of level {place} is wrong")

    live = live.reshape(-1)
    for start in range(0, tree.num_groups, _GROUPS):
        groups = np.arange(start, min(start + _GROUPS, tree.num_groups))
        _check_groups(tree, groups, live, index.reencoder.form == "lazy")
    for place in range(2, len(tree.widths)):
        _check_above(tree, place)


def _check_groups(tree, groups, live, bounded):
    """Centres, variances, radii and representatives of groups and their leaves, measured on rows.

    Where groups may be `bounded` from their leaves, their radii are at least the measured ones.
    """
    slots = groups[:, None] * GROUP + np.arange(GROUP)
    rows = tf.gather(tree.rows, slots).numpy().astype(np.float64)
    for place in (0, 1):
        nodes = groups if place else (groups[:, None] * FANOUT + np.arange(FANOUT)).ravel()
        members = rows.reshape(len(nodes), -1, tree.dim)
        mine = live[slots].reshape(len(nodes), -1)
        number = np.maximum(mine.sum(axis=1), 1)[:, None]
        centres = (members * mine[:, :, None]).sum(axis=1) / number
        squares = (members - centres[:, None]) ** 2 * mine[:, :, None]
        away = np.sqrt(squares.sum(axis=2))
        slack = _SLACK * (1.0 + np.abs(members).max(initial=0.0))
        level = tree.levels[place]
        moments = tf.gather(level.moments, nodes).numpy()
        _must(np.allclose(moments[:, : tree.dim], centres, atol=slack), f"a centre of level {place}")
        _must(
            np.allclose(moments[:, tree.dim :], squares.sum(axis=1) / number, atol=slack, rtol=1e-3),
            f"a variance of level {place}",
        )
        radii = tf.gather(level.radii, nodes).numpy()
        off = radii - away.max(axis=1)
        loose = bounded and place == 1
        good = off >= -slack if loose else np.abs(off) <= slack + 1e-3 * radii
        _must(good.all(), f"a radius of level {place}")
        used = mine.any(axis=1)
        first = (nodes * (GROUP if place else LEAF_SIZE))[used]
        representative = tf.gather(level.representatives, nodes[used]).numpy() - first
        inside = (representative >= 0) & (representative < members.shape[1])
        _must(inside.all(), f"a representative of level {place} is not in its node")
        distance = np.take_along_axis(away[used], representative[:, None], 1)[:, 0]
        nearest = np.where(mine, away, np.inf).min(axis=1)[used]
        good = loose or (distance <= nearest + slack).all()
        _must(good, f"a representative of level {place} is not nearest")


def _check_above(tree, place):
    """Nodes above level 1 against their children."""
    below, level = tree.levels[place - 1], tree.levels[place]
    counts = below.counts.numpy().reshape(-1, FANOUT)
    moments = below.moments.numpy().astype(np.float64).reshape(len(counts), FANOUT, -1)
    shares = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))[:, :, None]
    centres = (shares * moments[:, :, : tree.dim]).sum(axis=1)
    offsets = moments[:, :, : tree.dim] - centres[:, None]
    variances = (shares * (moments[:, :, tree.dim :] + offsets**2)).sum(axis=1)
    expected = np.concatenate([centres, variances], axis=1)
    slack = _SLACK * (1.0 + np.abs(moments).max(initial=0.0))
    found = level.moments.numpy()
    _must(np.allclose(found, expected, atol=slack, rtol=1e-3), f"moments of level {place}")
    away = np.sqrt((offsets**2).sum(axis=2))
    least = np.where(counts > 0, away + below.radii.numpy().reshape(-1, FANOUT), 0.0).max(axis=1)
    _must(np.allclose(level.radii.numpy(), least, atol=slack, rtol=1e-3), f"a radius of level {place}")
    used = (counts > 0).any(axis=1)
    mine = level.representatives.numpy()[used, None]
    candidates = below.representatives.numpy().reshape(-1, FANOUT)[used]
    distance = np.where((candidates == mine) & (counts > 0)[used], away[used], np.inf).min(axis=1)
    nearest = np.where(counts > 0, away, np.inf).min(axis=1)[used]
    _must((distance <= nearest + slack).all(), f"a representative of level {place}")


def _must(holds, what):
    if not holds:
        raise RuntimeError(f"The index is inconsistent: {what}. Please report this as a bug.")


def _mean(values):
    return float(values.mean()) if len(values) else 0.0
