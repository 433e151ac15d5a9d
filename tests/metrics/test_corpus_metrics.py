import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import clustered, gaussian, make_index
from tf_dynidx import metrics
from tf_dynidx.keras_world import keras
from tf_dynidx.metrics import CorpusMRR, CorpusNDCG, CorpusRecall, corpus_metrics, positive_ranks

DIM, SIZE, QUERIES = 6, 700, 24
METRICS = [CorpusRecall, CorpusNDCG, CorpusMRR]

rng = np.random.default_rng(0)
TARGETS = clustered(rng, SIZE, DIM)
TARGETS[5] = TARGETS[40]  # of equal scores, the lower row comes first
ENCODINGS = TARGETS[rng.integers(SIZE, size=QUERIES)] + 0.1 * gaussian(rng, QUERIES, DIM)
# One to four positives a query, not all of them easy to find.
POSITIVES = [
    rng.choice(np.argsort(-TARGETS @ query)[:60], size=1 + place % 4, replace=False)
    for place, query in enumerate(ENCODINGS)
]
EXCLUDE = [
    np.setdiff1d(np.argsort(-TARGETS @ query)[:5], positives)
    for query, positives in zip(ENCODINGS, POSITIVES, strict=True)
]


def padded(lists):
    """Lists as int32 [lists, longest], padded with -1."""
    table = np.full([len(lists), max(map(len, lists))], -1, np.int32)
    for row, each in zip(table, lists, strict=True):
        row[: len(each)] = each
    return table


@pytest.fixture(scope="module")
def index():
    """Not to be changed but by what leaves it as it was."""
    made = make_index(DIM, SIZE)
    made.build(TARGETS)
    return made


def result(metric, **given):
    metric.reset_state()
    given = {"y_true": padded(POSITIVES), "y_pred": ENCODINGS} | given
    metric.update_state(**given)
    return float(metric.result())


def expected(kind, ranks, k):
    """The definition, of lists of ranks, in plain Python."""
    values = []
    for own in ranks:
        own = np.array(own, np.float64)
        if kind is CorpusRecall:
            values.append(np.mean(own <= k))
        elif kind is CorpusNDCG:
            ideal = sum(1 / np.log2(r + 1) for r in range(1, min(len(own), k) + 1))
            values.append(sum(1 / np.log2(r + 1) for r in own if r <= k) / ideal)
        else:
            values.append(1 / own.min() if k is None or own.min() <= k else 0.0)
    return np.array(values)


RANKS = positive_ranks(ENCODINGS, TARGETS, POSITIVES)
RANKS_WITHOUT = positive_ranks(ENCODINGS, TARGETS, POSITIVES, EXCLUDE)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "search"])
@pytest.mark.parametrize("k", [1, 20])
@pytest.mark.parametrize("kind", METRICS)
def test_metric_is_that_of_the_definition(index, kind, k, exact):
    metric = kind(k, index, exact=exact, budget=SIZE)
    assert result(metric) == pytest.approx(expected(kind, RANKS, k).mean(), rel=1e-5)
    without = result(metric, exclude=padded(EXCLUDE))
    assert without == pytest.approx(expected(kind, RANKS_WITHOUT, k).mean(), rel=1e-5)
    if k > 1:
        assert without > result(metric)


def test_metrics_are_those_of_the_report(index):
    report = metrics.ranking_metrics(RANKS)
    for k in (1, 10, 20, 64, 100):
        found = result(CorpusRecall(k, index, exact=True))
        assert found == pytest.approx(report[f"recall@{k}"], rel=1e-5)
    assert result(CorpusNDCG(20, index, exact=True)) == pytest.approx(report["ndcg@20"], rel=1e-5)
    assert result(CorpusMRR(None, index, exact=True)) == pytest.approx(report["mrr"], rel=1e-5)


def test_search_of_few_rows_finds_less(index):
    narrow = result(CorpusRecall(50, index, budget=32))
    assert narrow < 0.9 * result(CorpusRecall(50, index, budget=SIZE))


def test_equal_scores_are_listed_by_rising_row(index):
    query = TARGETS[[40]]
    for exact in (True, False):
        first = CorpusRecall(1, index, exact=exact, budget=SIZE)
        assert result(first, y_true=[5], y_pred=query) == 1.0
        assert result(first, y_true=[40], y_pred=query) == 0.0


def test_one_positive_may_come_without_an_axis_of_its_own(index):
    first = np.array([each[0] for each in POSITIVES])
    metric = CorpusNDCG(20, index)
    alone = result(metric, y_true=first)
    assert alone == pytest.approx(result(metric, y_true=first[:, None].astype(np.int64)))
    with_padding = np.stack([np.full(QUERIES, -1), first], axis=1)
    assert alone == pytest.approx(result(metric, y_true=with_padding))


def test_queries_count_by_weight_and_those_without_positives_not_at_all(index):
    each = expected(CorpusRecall, RANKS, 7)
    metric = CorpusRecall(7, index)
    weight = np.arange(QUERIES, dtype=np.float32)
    weighted = result(metric, sample_weight=weight)
    assert weighted == pytest.approx(np.average(each, weights=weight), rel=1e-5)
    some = padded(POSITIVES)
    some[::3] = -1
    kept = np.arange(QUERIES) % 3 > 0
    assert result(metric, y_true=some) == pytest.approx(each[kept].mean(), rel=1e-5)
    assert result(metric, y_true=np.full([QUERIES, 2], -1)) == 0.0


def test_batches_add_up_and_a_reset_forgets_them_but_not_the_index(index):
    metric = CorpusMRR(None, index, exact=True)
    all_at_once = result(metric)
    metric.reset_state()
    assert float(metric.result()) == 0.0
    assert index.size == SIZE
    for part in (slice(0, 5), slice(5, 16), slice(16, None)):
        metric.update_state(padded(POSITIVES)[part], ENCODINGS[part])
    assert float(metric.result()) == pytest.approx(all_at_once, rel=1e-5)
    assert len(metric.variables) == 2


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "search"])
def test_row_that_is_not_in_the_index_or_excluded_is_not_found(exact):
    changed = make_index(DIM, 400)
    changed.build(TARGETS[:300])
    changed.remove(np.arange(10))
    metric = CorpusMRR(300, changed, exact=exact, budget=400)
    queries = TARGETS[[3, 350, 20]]
    assert result(metric, y_true=[3, 350, -1], y_pred=queries) == 0.0
    assert result(metric, y_true=[20, 20, 20], y_pred=queries) > 0.3
    assert result(metric, y_true=[20], y_pred=queries[2:], exclude=[[20]]) == 0.0
    # Removed rows, empty places and repeated exclusions count for nothing in the ranks of the others.
    live = np.arange(10, 300)
    ranks = positive_ranks(queries, TARGETS[live], [[200]] * 3, [[100]] * 3)
    found = result(metric, y_true=[210] * 3, y_pred=queries, exclude=[[110, 110, -1]] * 3)
    assert found == pytest.approx(expected(CorpusMRR, ranks, 300).mean(), rel=1e-5)


def test_corpus_of_several_blocks_is_ranked_as_one(index, monkeypatch):
    monkeypatch.setattr(corpus_metrics, "_BLOCK", 128)  # 700 is no multiple
    for kind in METRICS:
        metric = kind(50, index, exact=True)
        without = result(metric, exclude=padded(EXCLUDE))
        assert without == pytest.approx(expected(kind, RANKS_WITHOUT, 50).mean(), rel=1e-5)


def test_index_that_changes_is_ranked_as_it_is_now():
    changing = make_index(DIM, SIZE)
    changing.build(TARGETS)
    lost = {"y_true": [300], "y_pred": -TARGETS[[300]]}
    measured = [CorpusRecall(1, changing, exact=True), CorpusRecall(1, changing, budget=SIZE)]
    assert [result(metric, **lost) for metric in measured] == [0.0, 0.0]
    changing.update(np.array([300]), -5.0 * TARGETS[[300]])
    assert [result(metric, **lost) for metric in measured] == [1.0, 1.0]


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_exact_ranks_are_those_of_the_ranking(index, seed):
    generator = np.random.default_rng(seed)
    queries = gaussian(generator, 5, DIM)
    positives = [generator.choice(SIZE, generator.integers(1, 5), replace=False) for _ in range(5)]
    exclude = [
        np.setdiff1d(generator.integers(SIZE, size=generator.integers(1, 9)), own) for own in positives
    ]
    ranks = corpus_metrics.exact_ranks(index, queries, padded(positives), padded(exclude)).numpy()
    for own, truth in zip(ranks, positive_ranks(queries, TARGETS, positives, exclude), strict=True):
        np.testing.assert_array_equal(own[: len(truth)], truth)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_model_reports_metrics_of_its_query_encodings(index, jit_compile):
    inputs = keras.Input([DIM])
    model = keras.Model(inputs, keras.layers.Dense(DIM, kernel_initializer="identity")(inputs))
    model.compile(
        loss=lambda y_true, y_pred: tf.reduce_sum(y_pred**2, axis=1),
        metrics=[CorpusRecall(7, index, budget=SIZE), CorpusMRR(None, index, exact=True)],
        jit_compile=jit_compile,
    )
    found = model.evaluate(ENCODINGS, padded(POSITIVES), batch_size=10, return_dict=True, verbose=0)
    assert found["recall@7"] == pytest.approx(expected(CorpusRecall, RANKS, 7).mean(), rel=1e-5)
    assert found["mrr"] == pytest.approx(expected(CorpusMRR, RANKS, None).mean(), rel=1e-5)
    assert index.size == SIZE


def test_name_says_what_is_measured(index):
    assert [kind(3, index).name for kind in METRICS] == ["recall@3", "ndcg@3", "mrr"]
    assert CorpusRecall(3, index, name="mine").name == "mine"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: CorpusRecall(0), "k must be a whole number.*Received: k=0"),
        (lambda: CorpusNDCG(None), "k must be a whole number.*Received: k=None"),
        (lambda: CorpusMRR(None), r"give k, or exact=True.*Received: k=None, exact=False"),
        (lambda: CorpusRecall(5, budget=0.5), "budget must be a whole number.*Received: budget=0.5"),
        (lambda: CorpusRecall(5, TARGETS), "a DynamicIndex or a layers.TreeTopK. Received: ndarray"),
    ],
)
def test_bad_argument_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"y_true": np.zeros(QUERIES)}, "y_true must be rows .* integers. Received: dtype float64"),
        ({"y_true": np.zeros([QUERIES, 1, 1], int)}, r"\[batch\] or .*shape \(24, 1, 1\)"),
        ({"y_pred": ENCODINGS[:, :2]}, r"shape \[batch, 6\]. Received: shape \(24, 2\)"),
        ({"exclude": [[0.5]] * QUERIES}, "exclude must be rows .*Received: dtype float32"),
    ],
)
def test_bad_batch_is_refused(index, changes, message):
    with pytest.raises(ValueError, match=message):
        result(CorpusRecall(5, index), **changes)


def test_metric_without_an_index_says_so():
    with pytest.raises(ValueError, match="no index to rank .* set `index` .*Received: None"):
        result(CorpusRecall(5))
