import numpy as np
import pytest
import tensorflow as tf

from tests.serving.small import DIM, as_text, embeddings, exact, export, names, signatures

N, K = 300, 10
LOWEST = np.finfo(np.float32).min
TARGETS = embeddings(N)
QUERIES = embeddings(20, seed=1)


@pytest.fixture(scope="module", params=["exact", "tree"])
def served(request, tmp_path_factory):
    # A budget of all targets: what the tree finds then is exact.
    options = {"budget": N} if request.param == "tree" else {}
    path = tmp_path_factory.mktemp("export") / "exported"
    return signatures(export(path, TARGETS, index=request.param, **options))


def ask(served, k, exclude, queries=QUERIES):
    exclude = tf.constant(exclude, tf.string)
    return served["retrieve_with"](query=queries, k=tf.constant(k), exclude=exclude)


def without(queries, excluded, k):
    """Scores and names of the best targets that are not excluded, in NumPy."""
    scores = queries @ TARGETS.T
    for row, some in enumerate(excluded):
        scores[row, some] = -np.inf
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), np.array(names(N))[rows].tolist()


def test_excluded_targets_are_left_out_and_others_take_their_place(served):
    _, rows = exact(QUERIES, TARGETS, 4)
    rows[5:, 3] = -1  # some have fewer
    exclude = [[names(N)[row] if row >= 0 else "" for row in some] for some in rows]
    answer = ask(served, K, exclude)
    scores, identifiers = without(QUERIES, [some[some >= 0] for some in rows], K)
    assert as_text(answer["identifiers"]) == identifiers
    np.testing.assert_allclose(answer["scores"], scores, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 4, K])
def test_k_is_chosen_at_the_call(served, k):
    answer = ask(served, k, [[""]] * len(QUERIES))
    scores, rows = exact(QUERIES, TARGETS, k)
    assert as_text(answer["identifiers"]) == np.array(names(N))[rows].tolist()
    np.testing.assert_allclose(answer["scores"], scores, rtol=1e-5)


def test_every_query_may_have_its_own_k(served):
    answer = ask(served, [3, 1], [[], []], QUERIES[:2])
    (first, second) = as_text(answer["identifiers"])
    assert first == np.array(names(N))[exact(QUERIES[:1], TARGETS, 3)[1]][0].tolist()
    assert second == [first_of(QUERIES[1]), "", ""]
    assert answer["scores"].numpy()[1, 1:].tolist() == [LOWEST, LOWEST]


def first_of(query):
    return names(N)[int(np.argmax(TARGETS @ query))]


def test_similar_targets_are_neighbours_and_never_the_target_itself(served):
    rows = np.array([0, 7, 299])
    answer = served["similar"](identifiers=tf.constant(np.array(names(N))[rows]))
    scores, identifiers = without(TARGETS[rows], rows[:, None], K)
    assert as_text(answer["identifiers"]) == identifiers
    np.testing.assert_allclose(answer["scores"], scores, rtol=1e-5)


def test_no_queries_have_no_results(served):
    nothing = ask(served, 3, np.zeros([0, 2], str), np.zeros([0, DIM], np.float32))
    assert nothing["scores"].shape == nothing["identifiers"].shape == [0, 3]
    assert served["similar"](identifiers=tf.constant([], tf.string))["scores"].shape == [0, K]


@pytest.mark.parametrize(
    ("k", "exclude", "message"),
    [
        (0, [[""]], r"k must be from 1 to 10, the k of the export. Received:\] \[0\]"),
        (11, [[""]], r"k must be from 1 to 10, the k of the export. Received:\] \[11\]"),
        ([1, 2], [[""]], r"one for each query. Received, of k and queries:\] \[2 1\]"),
        (1, [[""], [""]], r"one row for each query. Received, of exclude and queries:\] \[2 1\]"),
        (1, [["", "target"]], r"exclude must be identifiers .* Received unknown:\] \[\\?\"?target"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_what_was_received(served, k, exclude, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        ask(served, k, exclude, QUERIES[:1])


def test_neighbours_of_an_unknown_target_are_refused(served):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"unknown:\] \[\\?\"?nobody"):
        served["similar"](identifiers=tf.constant(["target 1", "nobody"]))


def test_where_all_targets_are_excluded_nothing_is_found(tmp_path):
    few = signatures(export(tmp_path / "exported", TARGETS[:3], identifiers=[5, 6, 2**40], k=3))
    exclude = tf.constant([[5, 2**40]], tf.int64)
    answer = few["retrieve_with"](query=QUERIES[:1], k=tf.constant(3), exclude=exclude)
    assert answer["identifiers"].numpy().tolist() == [[6, -1, -1]]
    assert answer["scores"].numpy()[0, 1:].tolist() == [LOWEST, LOWEST]
