import re

import numpy as np
import pytest
import tensorflow as tf
from scipy.special import gammaln, ive

from tests.reference import (
    check_invariants,
    clustered,
    exact_softmax,
    index_as_new,
    log_partition,
    traced,
    whole_copies,
)
from tf_dynidx.index import DynamicIndex
from tf_dynidx.ops.in_place import do_if

SIZE, DIM, BETA = 1500, 6, 8.0
FORMS = ("full", "lazy")
everything = tf.range(SIZE)


@pytest.fixture(scope="module")
def rows():
    # Off the unit sphere: predictions for rows that lie on it are held there.
    return 1.5 * clustered(np.random.default_rng(0), SIZE, DIM, clusters=30)


def make(rows, **options):
    index = index_as_new(DIM, SIZE, **options)
    index.build(rows)
    return index


def moving(rows, steps, size=0.15, noise=0.0, seed=1):
    """The rows after each step of a smoothly moving encoder: a linear map, and noise of each row."""
    rng = np.random.default_rng(seed)
    map_ = size * rng.normal(size=[DIM, DIM]) / DIM**0.5
    shift = 0.3 * size * rng.normal(size=DIM)
    table = rows.astype(np.float64)
    for _ in range(steps):
        table = table + table @ map_ + shift + noise * rng.normal(size=table.shape)
        yield table.astype(np.float32)


def error(index, table):
    """Relative squared error of what the index predicts, row by row."""
    found = index.read(everything).numpy()
    return np.sum((found - table) ** 2, axis=1) / np.sum(table**2, axis=1)


def follow(index, tables, rows_of=None, period=3):
    """Writes some rows back after each step, and refreshes after every few."""
    write, correct = traced(index.write), traced(index.correct)
    for step, table in enumerate(tables):
        if rows_of is not None:
            mine = rows_of(step)
            write(tf.constant(mine, tf.int32), table[mine])
        else:
            write(tf.fill([4], -1), table[:4])
        if step % period == period - 1:
            correct(table[np.maximum(index.landmarks.numpy(), 0)])
    return table


# Full and lazy


def test_lazy_form_predicts_what_the_full_form_does(rows):
    def some(step):
        return np.random.default_rng(step).choice(SIZE, 100, replace=False)

    found = []
    for form in FORMS:
        index = make(rows, form=form)
        last = follow(index, moving(rows, 9), some)
        found.append(index.read(everything).numpy())
        assert error(index, last).mean() < 0.01
    np.testing.assert_allclose(found[1], found[0], atol=2e-3)


@pytest.mark.parametrize("form", FORMS)
def test_errors_of_predictions_do_not_add_up_over_refreshes(rows, form):
    # On the unit sphere, where what a regression cannot foresee moves rows as far as what it can.
    unit = rows / 1.5
    index = make(unit, form=form)

    def moved():
        for table in moving(unit, 12, size=0.2, noise=0.15):
            yield table / np.linalg.norm(table, axis=1, keepdims=True)

    last = follow(index, moved())
    others = np.flatnonzero(index.reencoder.written.numpy()[:SIZE] < 0)
    features = np.concatenate([unit, np.ones([SIZE, 1])], axis=1)
    best = features @ np.linalg.lstsq(features, last, rcond=None)[0]
    of_best = np.mean(np.sum((best - last)[others] ** 2, axis=1))
    static = np.mean(np.sum((unit - last)[others] ** 2, axis=1))
    assert of_best < 0.7 * static
    assert error(index, last)[others].mean() < 1.2 * of_best


def test_lazy_correction_stores_nothing_but_what_was_written(rows):
    index = make(rows, form="lazy")
    before = index.tree.read(everything).numpy()
    table = follow(index, moving(rows, 3))
    after = index.tree.read(everything).numpy()
    others = np.setdiff1d(np.arange(SIZE), np.flatnonzero(index.tree.moved.numpy()[:SIZE]))
    assert len(others) > SIZE / 2
    np.testing.assert_array_equal(after[others], before[others])
    assert error(index, table)[others].max() < 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_what_the_index_answers_is_about_the_predicted_encodings(rows, form):
    index = make(rows, form=form)
    follow(index, moving(rows, 6), lambda step: np.arange(step, SIZE, 40))
    index.upkeep()
    table = index.read(everything).numpy().astype(np.float64)
    queries = clustered(np.random.default_rng(5), 8, DIM)
    lower, estimate, upper = (each.numpy() for each in index.log_partition(queries, BETA))
    exact = log_partition(queries, table, BETA)
    assert (lower <= exact + 1e-3).all() and (exact <= upper + 1e-3).all()
    np.testing.assert_allclose(estimate, exact, atol=0.5)
    scores, found = index.search(queries, 10, budget=SIZE)
    truth = queries @ table.T
    np.testing.assert_allclose(scores, -np.sort(-truth, axis=1)[:, :10], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(truth, found.numpy(), 1), scores, atol=1e-3)
    # Drawn as the softmax over the predictions, not over what is stored, and by what is known of them.
    weighed = index.scores(tf.constant(queries), everything, BETA).numpy().astype(np.float64)
    for method, order in (("importance", 1), ("importance", 2), ("mh", 1), ("top", 1)):
        scored = index.scores(tf.constant(queries), everything, BETA, order).numpy()
        scored = truth if method == "top" else scored.astype(np.float64)
        if order == 1:
            sample = index.sample(queries, 16, BETA, method=method)
        else:
            none, seed = tf.fill([8, 1], -1), tf.constant([1, 2])
            asked = tf.constant(queries), tf.constant(BETA), none, seed
            sample = index.draw(*asked, 16, method, order=order)
        of_drawn = np.take_along_axis(scored, sample.ids.numpy(), 1)
        np.testing.assert_allclose(sample.scores, of_drawn, rtol=1e-3, atol=1e-3)
        log_prob = BETA * of_drawn - sample.log_partition.numpy()[:, None]
        np.testing.assert_allclose(sample.log_prob, log_prob, rtol=1e-3, atol=1e-2)
    draws = np.concatenate([index.sample(queries, 64, BETA).ids for _ in range(20)], axis=1)
    frequency = np.stack([np.bincount(each, minlength=SIZE) for each in draws]) / draws.shape[1]
    probabilities = np.exp(BETA * (weighed - weighed.max(axis=1, keepdims=True)))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    mean = frequency @ table
    expected = probabilities @ table
    assert np.abs(mean - expected).max() < 0.1


def test_rows_that_nothing_was_predicted_of_are_scored_as_they_are(rows):
    index = make(rows)
    queries = clustered(np.random.default_rng(5), 8, DIM)
    # Far off, and taken in: but the others stand as they were given.
    index.write(tf.range(0, SIZE, 3), -rows[::3])
    table = index.read(everything).numpy()
    scores = index.scores(tf.constant(queries), everything, BETA)
    np.testing.assert_allclose(scores, queries @ table.T, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_predictions_weigh_by_how_far_off_rows_of_their_age_were(rows, form):
    index = make(rows, form=form)
    often = np.arange(0, SIZE, 10)
    # With what no regression foresees, more of it with every step.
    last = follow(index, moving(rows, 6, noise=0.15), lambda step: often)
    index.upkeep()
    queries = clustered(np.random.default_rng(5), 8, DIM)
    table = index.read(everything).numpy()
    lifts = {
        order: index.scores(tf.constant(queries), everything, BETA, order).numpy() - queries @ table.T
        for order in (1, 2)
    }
    squared, _, number = index.reencoder.by_age.numpy().T
    known = number > 0
    age = index.reencoder.clock.numpy() + 1 - index.reencoder.written.numpy()[:SIZE]
    kind = np.minimum(np.floor(np.log2(age) + 1e-4).astype(int), len(number) - 1)
    errors = np.where(
        known, squared / np.maximum(number, 1e-12), (squared[known] / number[known]).max()
    )
    # An error of that length in any direction of as many dimensions as it varies along the query as in:
    # a Bessel function. For six 3 % below it, and interpolated from two errors to all.
    off = index.reencoder.errors.numpy().astype(np.float64)
    norms = np.sum(queries**2, axis=1)[:, None]
    dims = norms * np.trace(off) / np.einsum("qi,ij,qj->q", queries, off, queries)[:, None]
    for order, found in lifts.items():
        x, nu = order * BETA * np.sqrt(norms * errors[kind]), dims / 2 - 1
        expected = gammaln(nu + 1) + nu * np.log(2 / x) + np.log(ive(nu, x)) + x
        expected /= order * BETA
        # The fewer dimensions, the farther below it.
        rtol = {1: 0.06, 2: 0.07}[order] * DIM / np.minimum(dims, DIM)
        assert (np.abs(found - expected) <= rtol * expected + 1e-4).all()
    # Those that are written at every step are better known than those that never were.
    others = np.flatnonzero(index.reencoder.written.numpy()[:SIZE] < 0)
    assert len(others) > SIZE / 2
    assert lifts[1][:, often].max() < lifts[1][:, others].min()
    # Together they weigh about what they should, and what is estimated from draws by the root of the
    # mean square varies less than by predictions as they are.
    truth = exact_softmax(queries, last, BETA)

    def drawn(scores):
        return np.exp(BETA * scores) / np.exp(BETA * scores).sum(axis=1, keepdims=True)

    def share(probabilities):
        return probabilities[:, others].sum(axis=1).mean()

    def second_moment(scores):
        return (truth**2 / drawn(scores)).sum(axis=1).mean()

    plain = queries @ table.T
    lifted, unlifted, true = share(drawn(plain + lifts[1])), share(drawn(plain)), share(truth)
    assert unlifted < lifted and abs(lifted - true) < abs(unlifted - true)
    assert second_moment(plain + lifts[2]) < 0.9 * second_moment(plain)


@pytest.mark.parametrize("form", FORMS)
def test_repair_puts_the_predictions_into_the_rows(rows, form):
    index = make(rows, form=form)
    follow(index, moving(rows, 6), lambda step: np.arange(step, SIZE, 40))
    before = index.read(everything).numpy()
    index.repair()
    np.testing.assert_allclose(index.read(everything), before, atol=1e-4)
    np.testing.assert_allclose(index.tree.read(everything), before, atol=1e-4)
    index.check()
    check_invariants(index)


def test_updates_inserts_and_removals_are_about_the_predicted_encodings(rows):
    index = make(rows, form="lazy")
    index.remove(np.arange(10))
    follow(index, moving(rows, 3))
    fresh = clustered(np.random.default_rng(9), 20, DIM)
    index.insert(np.arange(10), fresh[:10])
    index.update(np.arange(10, 20), fresh[10:])
    np.testing.assert_allclose(index.read(tf.range(20)), fresh, atol=1e-4)
    index.check()


def test_map_that_goes_out_of_hand_is_folded_into_the_rows(rows):
    index = make(rows, form="lazy")
    flat = rows.copy()
    flat[:, 0] *= 1e-5
    for _ in range(3):
        index.correct(flat[index.landmarks.numpy()])
    np.testing.assert_allclose(index.read(everything), flat, atol=0.02)
    index.repair()
    index.check()


def test_lazy_step_compiled_by_xla_does_the_same(rows):
    tables = list(moving(rows, 2))
    results = []
    for jit_compile in (False, True):
        index = make(rows, form="lazy")

        @tf.function(jit_compile=jit_compile, autograph=False)
        def step(written, vectors, landmarks, index=index):
            index.write(written, vectors)
            index.correct(landmarks)
            index.upkeep()
            return index.due()

        for table in tables:
            written = np.arange(0, SIZE, 7, dtype=np.int32)
            step(written, table[written], table[index.landmarks.numpy()])
        index.check()
        results.append((index.read(everything).numpy(), index.landmarks.numpy()))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-3)
    np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("options", [{"flat": True}, {"form": "lazy"}])  # few targets, and many
def test_compiled_step_copies_no_table(rows, options):
    index = make(rows, **options)

    def step(written, vectors, landmarks):
        index.write(written, vectors)
        do_if(index.due(), lambda: index.follow(landmarks))
        return index.due()

    written = tf.range(0, SIZE, 7)
    args = written, tf.zeros([len(written), DIM]), tf.zeros([index.num_landmarks, DIM])
    tree = index.tree
    tables = tree.rows, tree.ids, tree.slots, index.reencoder.written
    assert whole_copies([each.shape for each in tables], step, *args) == 0


# What a correction is made of


@pytest.mark.parametrize("kernel", ["rbf", "linear+rbf"])
def test_rbf_kernels_carry_over_what_is_not_linear(rows, kernel):
    after = (rows + 0.4 * np.sin(3 * rows)).astype(np.float32)
    errors = {}
    for each in ("linear", kernel):
        index = make(rows, kernel=each, num_landmarks=300)
        landmarks = index.landmarks.numpy()
        index.correct(after[landmarks])
        others = np.setdiff1d(np.arange(SIZE), landmarks)
        errors[each] = error(index, after)[others].mean()
    assert errors[kernel] < 0.5 * errors["linear"]


@pytest.mark.parametrize("form", FORMS)
def test_write_backs_are_observations_of_how_all_rows_move(rows, form):
    errors = {}
    written = np.arange(0, SIZE, 10)
    for name, some in {"landmarks": None, "both": lambda step: written}.items():
        # Fewer than the regression has features.
        index = make(rows, form=form, num_landmarks=5)
        last = follow(index, moving(rows, 3), some)
        others = np.setdiff1d(np.arange(SIZE), np.union1d(written, index.landmarks.numpy()))
        errors[name] = error(index, last)[others].mean()
    assert errors["both"] < 0.7 * errors["landmarks"]


@pytest.mark.parametrize("form", FORMS)
def test_what_moves_at_random_is_not_carried_over(rows, form):
    index = make(rows, form=form)
    rng = np.random.default_rng(0)
    noisy = (rows + rng.normal(size=rows.shape)).astype(np.float32)
    before, landmarks = error(index, rows), index.landmarks.numpy()
    index.correct(noisy[landmarks])
    others = np.setdiff1d(np.arange(SIZE), landmarks)
    moved = np.linalg.norm(index.read(everything).numpy() - rows, axis=1)[others]
    assert before.max() < 1e-12 and moved.mean() < 0.4 * np.linalg.norm(noisy - rows, axis=1).mean()


@pytest.mark.parametrize("form", FORMS)
def test_encodings_that_are_not_finite_are_ignored(rows, form):
    index = make(rows, form=form)
    index.correct(np.full([index.num_landmarks, DIM], np.nan, np.float32))
    index.write(tf.constant([3, 4]), tf.constant([[np.inf] * DIM, [1.0] * DIM]))
    expected = rows.copy()
    expected[4] = 1.0
    np.testing.assert_allclose(index.read(everything), expected, atol=1e-6)


# When to refresh


def test_period_grows_while_little_moves_and_shrinks_while_much_does(rows):
    index = make(rows)
    first = float(index.reencoder.period)
    for _ in range(3):
        index.correct(index.read(index.landmarks))
    grown = float(index.reencoder.period)
    for table in moving(rows, 6, size=1.0):
        index.correct(table[index.landmarks.numpy()])
    assert grown > 2 * first and float(index.reencoder.period) < 0.5 * grown


def test_fixed_period_stays(rows):
    index = make(rows, refresh_every=7)
    due = []
    for step in range(1, 22):
        index.write(tf.constant([step]), rows[step : step + 1])
        due.append(bool(index.due()))
        if due[-1]:
            index.correct(rows[index.landmarks.numpy()])
    assert [step for step, now in enumerate(due, 1) if now] == [7, 14, 21]


def test_refresh_encodes_the_landmarks_and_nothing_else(rows):
    index = make(rows)
    (table,) = moving(rows, 1)
    asked = []

    def encode(which):
        asked.append(which.numpy())
        return table[which.numpy()]

    landmarks = index.landmarks.numpy()
    index.refresh(encode)
    np.testing.assert_array_equal(asked[0], landmarks)
    assert len(asked) == 1 and error(index, table).max() < 1e-3
    index.check()


def test_refresh_refuses_what_are_no_encodings_and_changes_nothing(rows):
    index = make(rows)
    number = index.num_landmarks
    for bad in (np.zeros([number, 3]), np.zeros([3, DIM]), np.full([number, DIM], np.nan)):
        with pytest.raises(ValueError, match="Received"):
            index.refresh(lambda which, bad=bad: bad.astype(np.float32))
    np.testing.assert_array_equal(index.read(everything), rows)
    with pytest.raises(ValueError, match="empty"):
        DynamicIndex(DIM, SIZE).refresh(lambda which: rows[which])


# An encoder that jumps


@pytest.mark.parametrize("form", FORMS)
def test_jump_is_noticed_at_once_and_made_up_for(rows, form):
    index = make(rows, form=form, refresh_every=1000)
    write = traced(index.write)
    rng = np.random.default_rng(0)
    often = np.arange(200, dtype=np.int32)
    for table in moving(rows, 20, size=0.02):
        write(often, table[often])
        assert not index.due()
    assert index.staleness()["jumps"] == 0
    turned = table @ np.linalg.qr(rng.normal(size=[DIM, DIM]))[0].astype(np.float32)
    write(often, turned[often])
    assert index.due() and index.staleness()["jumps"] == 1
    assert error(index, turned)[200:].mean() > 0.3
    index.refresh(lambda ids: tf.gather(turned, ids))
    # What moved the rows as a whole is undone by one refresh, though it came all at once.
    assert error(index, turned).mean() < 0.02
    write(often, turned[often])
    assert not index.due() and index.staleness()["jumps"] == 1


def test_few_rows_that_are_far_off_are_no_jump(rows):
    index = make(rows, refresh_every=1000)
    for _ in range(3):
        index.write(np.arange(20), -rows[:20])
        assert not index.due()
        index.write(np.arange(20), rows[:20])
    assert index.staleness()["jumps"] == 0


def test_compiled_write_back_does_not_copy_the_rows(rows):
    index = make(rows)
    write = tf.function(index.write, jit_compile=True, autograph=False)
    ids = tf.constant(np.arange(40, dtype=np.int32))
    code = write.experimental_get_compiler_ir(ids, tf.constant(rows[:40]))(stage="optimized_hlo")
    table = ",".join(map(str, index.tree.rows.shape))
    assert f"f32[{table}]" in code
    assert not re.search(rf"= f32\[{table}\]\S* copy\(", code)


# Landmarks


@pytest.mark.parametrize("landmarks", ["uniform", "spread", "use", "mixed"])
def test_landmarks_are_replaced_little_by_little_by_rows_that_are_held(rows, landmarks):
    index = make(rows, landmarks=landmarks)
    index.remove(np.arange(0, 300))
    write, correct = traced(index.write), traced(index.correct)
    written = np.arange(300, 500, dtype=np.int32)
    seen = set()
    for _ in range(40):
        write(written, rows[written])
        before = index.landmarks.numpy()
        correct(rows[np.maximum(before, 0)])
        now = index.landmarks.numpy()
        assert 0 <= np.sum(before != now) <= max(1, len(now) // 2)
        assert len(np.unique(now)) == len(now)
        seen |= set(now[before != now].tolist())
    assert min(seen) >= 300 and len(seen) > 40
    if landmarks == "use":
        # What refreshes write counts as used too.
        assert np.mean([each < 500 for each in seen]) > 0.7
    else:
        assert len([each for each in seen if each >= 500]) > 15


def test_spread_landmarks_lie_further_apart_than_uniform_ones():
    rng = np.random.default_rng(0)
    # Nearly all rows in one heap, the others far out and few.
    rows = np.concatenate([0.01 * rng.normal(size=[1400, DIM]), 3.0 * rng.normal(size=[100, DIM])])
    rows = (rows + 1.0).astype(np.float32)
    far = {}
    for kind in ("uniform", "spread"):
        index = make(rows, landmarks=kind)
        correct = traced(index.correct)
        shares = []
        for _ in range(60):
            correct(rows[index.landmarks.numpy()])
            shares.append(np.mean(index.landmarks.numpy() >= 1400))
        far[kind] = np.mean(shares[10:])
    assert far["spread"] > 2 * far["uniform"]


def test_index_filled_by_inserts_gets_its_landmarks_as_it_goes(rows):
    index = DynamicIndex(DIM, SIZE)
    index.insert(np.arange(SIZE), rows)
    assert (index.landmarks.numpy() == -1).all()
    for _ in range(20):
        index.refresh(lambda which: rows[which.numpy()])
    assert (index.landmarks.numpy() >= 0).mean() > 0.9


# Staleness


@pytest.mark.parametrize("form", FORMS)
def test_reported_error_is_that_of_what_is_written_back(rows, form):
    index = make(rows, form=form)
    assert index.staleness()["relative_error"] == 0.0
    rng = np.random.default_rng(0)
    moved = (rows + 0.3 * rng.normal(size=rows.shape)).astype(np.float32)
    true = np.mean(np.sum((moved - rows) ** 2, axis=1)) / np.mean(np.sum(moved**2, axis=1))
    some = rng.choice(SIZE, 500, replace=False).astype(np.int32)
    index.write(some, moved[some])
    found = index.staleness(beta=20.0)
    assert found["relative_error"] == pytest.approx(true, rel=0.15)
    assert found["largest_relative_error"] >= found["relative_error"]
    assert found["advice"] == "reencode" and 0.0 < found["sampling_error"] < 1.0
    assert index.stats()["staleness"]["relative_error"] == found["relative_error"]
    for _ in range(12):
        index.write(some, moved[some])
        index.correct(index.read(tf.maximum(index.landmarks, 0)))
    assert index.staleness()["relative_error"] < 0.3 * true
    assert index.staleness()["advice"] == "none"


def test_rows_written_often_do_not_hide_those_that_are_not(rows):
    # So few landmarks that most rows are never one.
    index = make(rows, num_landmarks=8)
    often, seldom = np.arange(100, dtype=np.int32), np.arange(100, 130, dtype=np.int32)
    for _ in range(20):
        index.write(often, rows[often])
        index.correct(index.read(index.landmarks))
    index.write(seldom, 2 * rows[seldom])
    # Nearly all but the hundred are as old as the thirty, and off by a quarter of their squared norm as
    # these.
    found = index.staleness()
    assert found["relative_error"] == pytest.approx(0.25 * (1 - 100 / SIZE), rel=0.3)
    assert 0.0 < found["largest_relative_error"] <= 0.25 + 1e-6


def test_sampling_error_is_that_of_errors_that_point_anywhere():
    rng = np.random.default_rng(0)
    dim, number, beta = 32, 4000, 6.0
    rows = rng.normal(size=[number, dim])
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    off = (rows + 0.1 * rng.normal(size=rows.shape)).astype(np.float32)
    index = DynamicIndex(dim, number)
    index.build(off)
    index.write(tf.range(200), rows[:200])
    queries = rows[:50]
    held = exact_softmax(queries, index.read(tf.range(number)).numpy(), beta)
    true = exact_softmax(queries, rows, beta)
    expected = np.mean(0.5 * np.abs(true - held).sum(axis=1))
    assert index.staleness(beta)["sampling_error"] == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": "cubic"},
        {"form": "eager"},
        {"landmarks": "all"},
        {"num_landmarks": 0},
        {"num_landmarks": SIZE + 1},
        {"refresh_every": 0},
        {"kernel": "rbf", "form": "lazy"},
    ],
)
def test_bad_arguments_are_refused(options):
    with pytest.raises(ValueError, match="Received"):
        DynamicIndex(DIM, SIZE, **options)


def test_lazy_form_is_the_default_of_a_large_index_with_the_linear_kernel():
    assert DynamicIndex(2, 1000).reencoder.form == "full"
    assert DynamicIndex(2, 300_000).reencoder.form == "lazy"
    assert DynamicIndex(2, 300_000, kernel="rbf").reencoder.form == "full"
