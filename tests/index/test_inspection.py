import numpy as np
import pytest
import tensorflow as tf

from tests.reference import clustered, make_index, state
from tf_dynidx.index import DynamicIndex
from tf_dynidx.index.shapes import search_shape
from tf_dynidx.ops import frontier, masses

DIM, SIZE = 4, 900


@pytest.fixture(scope="module")
def rows():
    return clustered(np.random.default_rng(0), SIZE, DIM)


@pytest.fixture(scope="module", params=[2, 3])
def index(request, rows):
    made = make_index(DIM, SIZE, levels=request.param)
    made.build(rows)
    return made


# Damage, each of one variable: what it is done to, what is done to its value, and the message


def change(where, what):
    """`where` in a variable becomes `what`, or what that makes of it."""

    def damage(value, tree):
        place = where(tree) if callable(where) else where
        value[place] = what(value[place]) if callable(what) else what
        return value

    return damage


def swap(value, tree):
    value[[0, 1]] = value[[1, 0]]
    return value


def absent(tree):
    """A row that is not held."""
    assert not tree.contains(tf.constant(SIZE)).numpy()
    return SIZE


def farthest(tree):
    """The slot of the row of the first leaf that is farthest from its centre."""
    rows = tree.rows.numpy()[: tree.counts[0].numpy()[0]]
    return np.linalg.norm(rows - rows.mean(axis=0), axis=1).argmax()


BOTH = {
    "row": ("rows", change(0, lambda row: row + 0.1), "a centre of level 0"),
    "NaN": ("rows", change((0, 0), np.nan), "a centre of level 0"),
    "row in scratch": ("ids", change(-1, SIZE), "scratch"),
    "id below 0": ("ids", change(0, -2), "out of range"),
    "id beyond capacity": ("ids", change(0, 10**6), "out of range"),
    "id twice": ("ids", lambda ids, tree: np.append(ids[1], ids[1:]), "two slots"),
    "ids exchanged": ("ids", swap, "another slot"),
    "id lost": ("ids", change(0, -1), "slot that does not hold it"),
    "slot": ("slots", change(0, lambda slot: slot + 1), "another slot"),
    "slot of an absent row": ("slots", change(absent, 7), "slot that does not hold it"),
    "counts of leaves": ("counts_0", change(3, lambda n: n + 1), "leaf's count"),
    "counts of groups": ("counts_1", change(0, lambda n: n - 1), "count of level 1"),
    "counts of scratch": ("counts_1", change(-1, 1), "count of level 1"),
    "centre of a leaf": ("moments_0", change((5, 0), lambda x: x + 0.01), "centre of level 0"),
    "centre of a group": ("moments_1", change((0, 1), lambda x: x - 0.01), "centre of level 1"),
    "variance of a leaf": ("moments_0", change((5, DIM), lambda x: x + 0.01), "variance of level 0"),
    "variance of a group": ("moments_1", change((0, -1), np.nan), "variance of level 1"),
    "radius of a leaf": ("radii_0", change(0, lambda x: 0.9 * x), "radius of level 0"),
    "radius of a group": ("radii_1", change(0, lambda x: 1.1 * x), "radius of level 1"),
    "representative elsewhere": ("representatives_0", change(0, 40), "not in its node"),
    "representative of a group": ("representatives_1", change(0, -1), "not in its node"),
    "representative far off": (
        "representatives_0",
        lambda slots, tree: np.append(farthest(tree), slots[1:]),
        "not nearest",
    ),
}
ABOVE = {
    "counts": ("counts_2", change(0, lambda n: n + 1), "count of level 2"),
    "centre": ("moments_2", change((0, 0), lambda x: x + 0.01), "moments of level 2"),
    "variance": ("moments_2", change((0, DIM), lambda x: x + 0.01), "moments of level 2"),
    "radius": ("radii_2", change(0, lambda x: 0.9 * x), "radius of level 2"),
    "representative": ("representatives_2", change(0, -1), "representative of level 2"),
}


def check_damage(index, name, damage, message):
    tree = index.tree
    (variable,) = [each for each in tree.variables if each.name == f"{name}:0"]
    before, value = variable.numpy(), variable.numpy()
    value = damage(value, tree)
    variable.assign(value)
    try:
        with pytest.raises(RuntimeError, match=f"inconsistent: .*{message}"):
            index.check()
    finally:
        variable.assign(before)
    index.check()


@pytest.fixture(scope="module", params=[2, 3])
def roomy(request, rows):
    made = make_index(DIM, SIZE + 100, levels=request.param)
    made.build(rows)
    made.check()
    return made


@pytest.mark.parametrize("case", BOTH)
def test_damage_is_found(roomy, case):
    check_damage(roomy, *BOTH[case])


@pytest.mark.parametrize("case", ABOVE)
def test_damage_above_groups_is_found(rows, case):
    index = make_index(DIM, SIZE + 100, levels=3)
    index.build(rows)
    check_damage(index, *ABOVE[case])


def test_gap_in_a_leaf_is_found(roomy):
    """As if a row had been moved one slot on, with all that is noted about it."""
    tree, before = roomy.tree, state(roomy)
    count = int(tree.counts[0][0])
    ids, slots, rows = tree.ids.numpy(), tree.slots.numpy(), tree.rows.numpy()
    row = ids[count - 1]
    ids[[count - 1, count]], slots[row], rows[count] = [-1, row], count, rows[count - 1]
    for variable, value in ((tree.ids, ids), (tree.slots, slots), (tree.rows, rows)):
        variable.assign(value)
    with pytest.raises(RuntimeError, match="a leaf has a gap"):
        roomy.check()
    for variable, value in zip(roomy.variables, before, strict=True):
        variable.assign(value)
    roomy.check()


def test_statistics_that_are_behind_are_found_until_the_next_upkeep(rows):
    index = DynamicIndex(DIM, SIZE)
    index.build(rows)
    for put_right in (index.upkeep, index.repair):
        index.write(tf.range(100), -index.tree.read(tf.range(100)))
        with pytest.raises(RuntimeError, match="Please report this as a bug"):
            index.check()
        put_right()
        index.check()


# Figures


def test_stats_are_those_of_the_rows(index, rows):
    stats, tree = index.stats(), index.tree
    assert (stats["size"], stats["capacity"], stats["dense_level"]) == (SIZE, SIZE, tree.dense)
    assert stats["landmarks"] == 16 * (DIM + 1) and len(stats["levels"]) == len(tree.widths)
    slot = np.flatnonzero(tree.ids.numpy() >= 0)
    held = tree.rows.numpy()[slot].astype(np.float64)
    for place, level in enumerate(stats["levels"]):
        size = 32 * 16**place
        members = [held[slot // size == node] for node in np.unique(slot // size)]
        numbers = [len(each) for each in members]
        assert (level["nodes"], level["places"]) == (len(members), tree.widths[place])
        assert level["rows_largest"] == max(numbers)
        np.testing.assert_allclose(level["rows_mean"], np.mean(numbers))
        below = size // 16 if place else 1
        children = [len(np.unique(s)) for s in np.split(slot // below, np.cumsum(numbers)[:-1])]
        np.testing.assert_allclose(level["children_mean"], np.mean(children))
        variance = sum(((each - each.mean(axis=0)) ** 2).sum() for each in members) / SIZE
        np.testing.assert_allclose(level["variance"], variance, rtol=1e-3)
        radii = [np.linalg.norm(each - each.mean(axis=0), axis=1).max() for each in members]
        if place < 2:
            np.testing.assert_allclose(level["radius_median"], np.median(radii), rtol=1e-3)
            np.testing.assert_allclose(level["radius_largest"], max(radii), rtol=1e-3)
        else:
            assert level["radius_largest"] >= level["radius_median"] >= 0.999 * max(radii)


def test_stats_count_the_rows_that_moved(rows):
    index = DynamicIndex(DIM, SIZE)
    assert index.stats()["size"] == 0  # an empty index has figures, too
    index.build(rows)
    assert index.stats()["moved_rows"] == 0
    index.update(np.arange(5), rows[5:10])
    index.write(tf.constant([7, 8, -1, SIZE]), rows[:4])
    assert index.stats()["moved_rows"] == 7
    index.repair()
    assert index.stats()["moved_rows"] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("levels", [2, 3])
def test_memory_is_what_the_variables_take(levels, dtype):
    index = make_index(DIM, SIZE, levels, dtype=dtype)
    memory = index.memory()
    total = memory.pop("total")
    assert set(memory) == {"rows", "ids", "statistics", "ages", "reencoder"}
    assert total == sum(memory.values())
    slots = index.tree.ids.shape[0]
    assert memory["rows"] == slots * DIM * (2 if dtype == "bfloat16" else 4)
    assert memory["ids"] == 8 * (slots + SIZE + 1)
    everything = sum(len(each.numpy().tobytes()) for each in index.variables)
    assert 0 <= everything - total < 32  # a few counters


def nodes_of(moments):
    return moments.shape.num_elements() // moments.shape[-1]


@pytest.mark.parametrize("what", ["sample", "search"])
def test_costs_are_the_products_that_are_taken(index, rows, what, monkeypatch):
    """Nodes are counted with scratch where they are scored, and without it in the cost."""
    taken = []
    project, dots = masses.project, frontier.dots
    none, one = tf.constant([[-1]]), tf.constant(rows[:1])
    if what == "sample":
        monkeypatch.setattr(
            masses, "project", lambda q, m: taken.append(2 * nodes_of(m)) or project(q, m)
        )
        monkeypatch.setattr(
            frontier, "dots", lambda *a: taken.append(a[2].shape.num_elements()) or dots(*a)
        )
        for samples in (1, 30):
            taken.clear()
            index.draw(one, tf.constant(2.0), none, tf.constant([1, 2]), samples)
            assert 0 <= sum(taken) - index.sample_cost(samples) <= 2 * 16**index.tree.dense * 16 + 31
        assert index.sample_cost(30) > index.sample_cost(1)
        # From a budget of all rows on each is scored, and once more those near to a draw.
        assert SIZE < index.sample_cost(1, budget=SIZE) < 2 * SIZE
        return
    rises = []
    rise = index._top_k.__globals__["tree_top_k"].__globals__["rise"]
    monkeypatch.setattr(
        "tf_dynidx.ops.search.rise", lambda n, m: rises.append(nodes_of(m)) or rise(n, m)
    )
    for k, budget in ((5, 300), (5, None), (900, 900)):
        rises.clear()
        index._top_k(one, k, search_shape(index.tree, k, budget), none)
        nodes = index.search_cost(k, budget) - min(SIZE, budget or SIZE)
        assert 0 <= sum(rises) - nodes <= 16 ** (len(index.tree.widths) - 1)
