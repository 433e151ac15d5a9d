"""What several tests share: references in NumPy, in float64, and what must hold of every index."""

import functools
import re
from unittest.mock import patch

import numpy as np
import tensorflow as tf
from scipy.special import logsumexp, softmax

from tf_dynidx.index import DynamicIndex


def log_partition(queries, rows, beta, exclude=None):
    """log sum_y exp(beta q.y) over the rows that are not excluded, by enumeration: [queries]."""
    return logsumexp(_logits(queries, rows, beta, exclude), axis=1)


def exact_softmax(queries, rows, beta, exclude=None):
    """The softmax over the rows that are not excluded, by enumeration: [queries, rows]."""
    return softmax(_logits(queries, rows, beta, exclude), axis=1)


def full_softmax_loss(queries, rows, beta, positives):
    """Cross-entropy of the softmax over all rows, of one positive a query: [queries]."""
    probabilities = exact_softmax(queries, rows, beta)
    return -np.log(np.take_along_axis(probabilities, np.asarray(positives)[:, None], axis=1)[:, 0])


def sampled_softmax(logits, positives, log_expected, masked):
    """The loss on candidates that counts each as one over its expected count: [queries]."""
    losses = []
    for query, positive in enumerate(positives):
        partition = np.exp(np.float64(logits[query, positive]))
        for candidate, logit in enumerate(logits[query]):
            if candidate != positive and not masked[query, candidate]:
                partition += np.exp(np.float64(logit) - log_expected[candidate])
        losses.append(np.log(partition) - logits[query, positive])
    return np.array(losses)


def full_softmax_gradient(queries, rows, beta, positives):
    """Gradient of the mean of `full_softmax_loss`, with respect to queries and to rows."""
    error = exact_softmax(queries, rows, beta)
    error[np.arange(len(error)), positives] -= 1.0
    error *= beta / len(error)
    return error @ np.asarray(rows, np.float64), error.T @ np.asarray(queries, np.float64)


def top_k(scores, k):
    """(scores, columns) of the k best of each row of scores, best first; of equals the first."""
    columns = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, columns, axis=1), columns


def _logits(queries, rows, beta, exclude):
    """beta q.y, -inf for the excluded: [queries, rows]. `exclude` [queries, any], -1 for none."""
    logits = float(beta) * np.asarray(queries, np.float64) @ np.asarray(rows, np.float64).T
    if exclude is not None:
        for query, excluded in enumerate(np.asarray(exclude)):
            logits[query, excluded[excluded >= 0]] = -np.inf
    return logits


def total_variation(counts, probabilities):
    """Distance between observed frequencies and a distribution, from 0 to 1."""
    return 0.5 * np.abs(counts / counts.sum() - probabilities).sum()


def expected_total_variation(rng, draws, probabilities, repeats=10):
    """The distance that as many independent draws from the distribution itself have from it."""
    counts = rng.multinomial(int(draws), probabilities, size=repeats)
    return np.mean([total_variation(each, probabilities) for each in counts])


def gaussian(rng, number, dim):
    return rng.normal(size=[number, dim]).astype(np.float32)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(rng, number, dim, clusters=30, spread=0.3):
    """Unit vectors around a few directions, as encodings of real targets are."""
    directions = rng.normal(size=[clusters, dim])[rng.integers(clusters, size=number)]
    return unit(directions + spread * rng.normal(size=[number, dim]))


def make_index(dim, capacity, levels=2, **changes):
    """An empty index; of three levels also where so few rows would have two, or "flat"."""
    if levels == "flat":
        return DynamicIndex(dim, capacity, flat=True, **changes)
    if levels == 2:
        return DynamicIndex(dim, capacity, **changes)
    # A capacity of 300 and more, for which there is more than one group.
    with patch.multiple("tf_dynidx.index.tree", _DENSE=-(-capacity // 4096), _DENSE_GROWTH=0):
        index = DynamicIndex(dim, capacity, **changes)
    assert len(index.tree.widths) == levels == 3
    return index


_made = {}


def index_as_new(dim, capacity, levels=2, copy=0, **changes):
    """`make_index`, but one of an earlier call where there is one, emptied: its functions are traced.

    For a test of its own, which is done with it when the next one asks. Where it asks for two that are
    alike, they are told apart by `copy`.
    """
    key = (dim, capacity, levels, copy, *sorted(changes.items()))
    if key not in _made:
        index = make_index(dim, capacity, levels, **changes)
        _made[key] = index, [each.numpy() for each in index.variables]
    index, start = _made[key]
    for variable, value in zip(index.variables, start, strict=True):
        variable.assign(value)
    return index


@functools.cache
def traced(method):
    """The method of an index as a `tf.function`, one for all who ask."""
    return tf.function(method, autograph=False)


def forget_indexes():
    """Lets go of what `index_as_new` and `traced` share."""
    _made.clear()
    traced.cache_clear()


def whole_copies(shapes, function, *args):
    """How many copies of whole tables of some shapes XLA puts into a compiled function."""
    compiled = tf.function(function, jit_compile=True, autograph=False)
    code = compiled.experimental_get_compiler_ir(*args)(stage="optimized_hlo")
    shapes = "|".join(",".join(map(str, shape)) for shape in shapes)
    return len(re.findall(rf"= \w+\[({shapes})\]\S* copy\(", code))


def held(index):
    """What an index holds, as a dict from row id to vector."""
    ids = np.arange(index.capacity, dtype=np.int32)
    ids = ids[index.tree.contains(ids).numpy()]
    return dict(zip(ids.tolist(), index.tree.read(ids).numpy(), strict=True))


def check_holds(index, expected):
    """Asserts that an index holds exactly the rows of a dict from row id to vector."""
    found = held(index)
    assert found.keys() == expected.keys()
    assert index.size == len(expected)
    if expected:
        ids = sorted(expected)
        vectors = [np.stack([each[row] for row in ids]) for each in (found, expected)]
        np.testing.assert_array_equal(*vectors)


def check_invariants(index, statistics=True):
    """Asserts what holds of an index at any time; the statistics of nodes only after a refresh."""
    tree = index.tree
    counts = [each.numpy() for each in tree.counts]
    ids, slots = tree.ids.numpy().reshape(len(counts[0]), -1), tree.slots.numpy()
    scratch = tree.widths[0]
    assert (ids[scratch:] == -1).all(), "a scratch leaf holds rows"
    size = ids.shape[1]
    live = np.arange(size) < counts[0][:, None]
    np.testing.assert_array_equal(ids != -1, live, err_msg="live slots are not the first ones")
    assert len(np.unique(ids[live])) == live.sum() == index.size, "a row is in two slots"
    where = np.full(index.capacity + 1, scratch * size)
    where[ids[live]] = np.flatnonzero(live)
    np.testing.assert_array_equal(slots, where, err_msg="slots is not the inverse of ids")
    rows = tree.rows.numpy().astype(np.float64)
    assert np.isfinite(rows[live.ravel()]).all()
    if not statistics:
        return
    atol = 1e-5 * (1.0 + np.abs(rows[live.ravel()]).max(initial=0.0))
    below = None
    for place, width in enumerate(tree.widths):
        number = len(counts[place])
        assert number > width
        mine = live.reshape(number, -1)
        np.testing.assert_array_equal(counts[place], mine.sum(axis=1), err_msg=f"level {place}")
        used = counts[place] > 0
        members = rows.reshape(number, mine.shape[1], -1)[used]
        mask = mine[used]
        weights = (mask / mask.sum(axis=1, keepdims=True))[:, :, None]
        centres = (members * weights).sum(axis=1)
        offsets = members - centres[:, None]
        variances = (offsets**2 * weights).sum(axis=1)
        away = np.where(mask, np.linalg.norm(offsets, axis=2), -np.inf)
        moments, radii = tree.moments[place].numpy(), tree.radii[place].numpy()
        np.testing.assert_allclose(moments[used, : index.dim], centres, rtol=1e-5, atol=atol)
        np.testing.assert_allclose(moments[used, index.dim :], variances, rtol=1e-4, atol=atol)
        assert (moments[~used] == 0).all() and (radii[~used] == 0).all()
        chosen = tree.representatives[place].numpy()[used] - np.flatnonzero(used) * mask.shape[1]
        chosen = np.take_along_axis(away, chosen[:, None], axis=1)[:, 0]
        assert np.isfinite(chosen).all(), "a representative is not a row of its node"
        if place < 2:
            np.testing.assert_allclose(radii[used], away.max(axis=1), rtol=1e-4, atol=atol)
            nearest = np.where(mask, away, np.inf).min(axis=1)
            np.testing.assert_allclose(chosen, nearest, rtol=1e-4, atol=atol)
        else:
            # What the children guarantee, which is no less than what the rows need.
            assert (radii[used] >= away.max(axis=1) - atol).all()
            number_below = len(counts[place - 1])
            theirs = np.full(number_below, -np.inf)
            theirs[counts[place - 1] > 0] = below
            centre = np.repeat(moments[:, : index.dim], number_below // number, axis=0)
            child = tree.moments[place - 1].numpy()[:, : index.dim]
            theirs = (theirs + np.linalg.norm(child - centre, axis=1)).reshape(number, -1)
            np.testing.assert_allclose(radii[used], theirs[used].max(axis=1), rtol=1e-4, atol=atol)
        below = radii[used]


def state(index):
    """Values of all variables of an index, to be compared before and after."""
    return [variable.numpy() for variable in index.variables]


def check_same_state(index, before):
    assert len(before) == len(index.variables) > 5
    for variable, value in zip(index.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.name)
