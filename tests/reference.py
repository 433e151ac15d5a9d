"""What several tests share: references in NumPy, in float64, and what must hold of every index."""

import numpy as np
from scipy.special import logsumexp, softmax


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
    for row, vector in expected.items():
        np.testing.assert_array_equal(found[row], vector, err_msg=f"row {row}")


def check_invariants(index, statistics=True):
    """Asserts what holds of an index at any time; the statistics of leaves only after a refresh."""
    tree = index.tree
    ids, counts, slots = tree.ids.numpy(), tree.counts.numpy(), tree.slots.numpy()
    assert counts[-1] == 0 and (ids[-1] == -1).all(), "the scratch leaf holds rows"
    number = ids.shape[1]
    live = np.arange(number) < counts[:, None]
    np.testing.assert_array_equal(ids != -1, live, err_msg="live slots are not the first ones")
    assert len(np.unique(ids[live])) == live.sum() == index.size, "a row is in two slots"
    where = np.full(index.capacity + 1, tree.num_leaves * number)
    where[ids[live]] = np.flatnonzero(live)
    np.testing.assert_array_equal(slots, where, err_msg="slots is not the inverse of ids")
    rows = tree.rows.numpy().astype(np.float64)
    assert np.isfinite(rows[live]).all()
    if not statistics:
        return
    centres, variances = tree.centres.numpy(), tree.variances.numpy()
    radii = tree.radii.numpy()
    assert np.isfinite(centres).all() and np.isfinite(variances).all() and np.isfinite(radii).all()
    for leaf, count in enumerate(counts[:-1]):
        members = rows[leaf, :count]
        scale = 1e-5 * (1.0 + np.abs(members).max(initial=0.0))
        mean = members.mean(axis=0) if count else 0.0
        variance = members.var(axis=0) if count else 0.0
        radius = np.linalg.norm(members - mean, axis=1).max(initial=0.0)
        np.testing.assert_allclose(centres[leaf], mean + np.zeros(index.dim), atol=scale)
        np.testing.assert_allclose(
            variances[leaf], variance + np.zeros(index.dim), rtol=1e-4, atol=scale
        )
        np.testing.assert_allclose(radii[leaf], radius, rtol=1e-4, atol=scale)


def state(index):
    """Values of all variables of an index, to be compared before and after."""
    return [variable.numpy() for variable in index.variables]


def check_same_state(index, before):
    assert len(before) == len(index.variables) > 5
    for variable, value in zip(index.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.name)
