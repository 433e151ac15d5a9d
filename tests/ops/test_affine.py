import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tf_dynidx.ops import affine


def changes(seed, dim, steps, size=0.2):
    """Affine changes y -> y + [y, 1] A, one after the other."""
    rng = np.random.default_rng(seed)
    return [(size / dim * rng.normal(size=[dim + 1, dim])).astype(np.float32) for _ in range(steps)]


def composed(dim, steps):
    made = affine.identity(dim)
    for each in steps:
        made = affine.followed_by(made, tf.constant(each))
    return made


def applied(rows, steps):
    rows = rows.astype(np.float64)
    for each in steps:
        rows = rows + rows @ each[:-1] + each[-1]
    return rows


@given(seed=st.integers(0, 1000), dim=st.integers(1, 9), number=st.integers(0, 12))
def test_composed_map_does_what_its_steps_do_and_is_undone(seed, dim, number):
    steps = changes(seed, dim, number)
    rows = np.random.default_rng(seed).normal(size=[20, dim]).astype(np.float32)
    made = composed(dim, steps)
    moved = affine.forward(made, rows)
    np.testing.assert_allclose(moved, applied(rows, steps), rtol=1e-3, atol=1e-4)
    if affine.sound(made):
        np.testing.assert_allclose(affine.backward(made, moved), rows, rtol=1e-2, atol=1e-2)


@given(seed=st.integers(0, 1000), dim=st.integers(1, 9))
def test_pulled_back_queries_score_what_is_stored_as_what_it_stands_for(seed, dim):
    rng = np.random.default_rng(seed)
    rows, queries = (rng.normal(size=[size, dim]).astype(np.float32) for size in (20, 5))
    made = composed(dim, changes(seed, dim, 3))
    pulled, shifts = affine.pulled_back(made, queries)
    np.testing.assert_allclose(
        pulled.numpy() @ rows.T + shifts.numpy()[:, None],
        queries @ affine.forward(made, rows).numpy().T,
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_map_that_cannot_be_undone_is_not_sound(jit_compile):
    run = tf.function(
        lambda change: affine.sound(affine.followed_by(affine.identity(6), change)),
        jit_compile=jit_compile,
    )
    flat = np.zeros([7, 6], np.float32)
    flat[:6] = -np.eye(6)
    flat[0, 0] = 0.0  # all rows to one line
    squeezed = np.zeros([7, 6], np.float32)
    squeezed[5, 5] = -0.9999
    assert run(np.zeros([7, 6], np.float32)) and run(changes(0, 6, 1)[0])
    for bad in (flat, squeezed, np.full([7, 6], np.nan), np.full([7, 6], 1e30)):
        assert not run(bad.astype(np.float32))
