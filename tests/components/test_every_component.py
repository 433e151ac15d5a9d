"""What holds of every layer, loss, metric and callback, whatever it does."""

import functools
import inspect
import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tests.callbacks.worlds import POSITIVES, QUERY_FEATURES, Indexed, make, train
from tests.reference import clustered, gaussian, make_index
from tf_dynidx import TargetCorpus, callbacks, layers, losses, metrics
from tf_dynidx.keras_world import keras
from tf_dynidx.miners import Uniform

DIM, SIZE, BATCH = 6, 200, 8

rng = np.random.default_rng(0)
TARGETS = clustered(rng, SIZE, DIM)
QUERIES = TARGETS[:BATCH] + 0.2 * gaussian(rng, BATCH, DIM)
ROWS = np.stack([np.arange(BATCH), np.where(np.arange(BATCH) % 2, -1, 50)], axis=1).astype(np.int32)


@functools.cache
def index():
    made = make_index(DIM, SIZE)
    made.build(TARGETS)
    return made


def corpus():
    return TargetCorpus(TARGETS)


def tower():
    features = keras.Input([DIM])
    return keras.Model(features, keras.layers.Dense(DIM, kernel_initializer="identity")(features))


class Case(NamedTuple):
    """One component.

    Attributes:
        make: makes it, ready for use.
        call: what is done with it inside a step; deterministic, but for draws.
        ready: gives one that was made from a configuration what a configuration does not hold.
        tolerance: how far results may be off in half precision.
    """

    make: Callable
    call: Callable
    ready: Callable = lambda component: component
    tolerance: float = 1e-5


def measured(metric):
    metric.update_state(ROWS, QUERIES)
    return metric.result()


def with_index(metric):
    metric.index = index()
    return metric


def losses_of(loss):
    return loss(np.arange(BATCH), QUERIES @ TARGETS.T, log_expected=np.linspace(-1, 1, SIZE))


LAYERS = {
    "TreeTopK": Case(
        lambda: layers.TreeTopK(k=5, budget=SIZE).index(TARGETS, 7 * np.arange(SIZE)),
        lambda layer: layer(QUERIES),
        lambda layer: layer.index(TARGETS, 7 * np.arange(SIZE)),
    ),
    "NegativeMiner": Case(
        lambda: layers.NegativeMiner(Uniform(3, seed=4), corpus(), tower(), 0.1).prepare(),
        lambda layer: layer(QUERIES, ROWS),
        lambda layer: layer.prepare(),
    ),
}
LOSSES = {"SampledSoftmax": Case(lambda: losses.SampledSoftmax(0.5), losses_of)}
METRICS = {
    "CorpusRecall": Case(lambda: metrics.CorpusRecall(3, index(), budget=SIZE), measured, with_index),
    "CorpusNDCG": Case(lambda: metrics.CorpusNDCG(4, index(), exact=True), measured, with_index),
    "CorpusMRR": Case(lambda: metrics.CorpusMRR(None, index(), exact=True), measured, with_index),
}
COMPONENTS = LAYERS | LOSSES | METRICS
DATA = (QUERY_FEATURES[:40], POSITIVES[:40])
CALLBACKS = {
    "IndexMonitor": (lambda: callbacks.IndexMonitor(every=3, seed=5), {}, "index/certificate_width"),
    "IndexRefresh": (lambda: callbacks.IndexRefresh(full=True), {}, "index/rows_moved"),
    "CorpusEvaluation": (
        lambda: callbacks.CorpusEvaluation(DATA, ks=[1, 3], exact=True, prefix="test_"),
        {"data": DATA},
        "test_ndcg@3",
    ),
}

each_component = pytest.mark.parametrize("name", COMPONENTS)
each_callback = pytest.mark.parametrize("name", CALLBACKS)


def results(case, component, wrap=lambda call: call):
    """What comes of a use, as a list of arrays."""
    return [np.asarray(each) for each in tf.nest.flatten(wrap(lambda: case.call(component))())]


def options(component):
    """Its configuration, but for models in it, which Keras does not write twice in the same way."""
    config = json.loads(json.dumps(component.get_config()))
    return {name: value for name, value in config.items() if not name.endswith("tower")}


def assert_same(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_no_component_is_left_out():
    public = {
        name
        for module in (layers, losses, metrics, callbacks)
        for name in module.__all__
        if inspect.isclass(getattr(module, name))
    }
    assert public == {*COMPONENTS, *CALLBACKS}


@each_component
def test_call_returns_finite_numbers(name):
    found = results(COMPONENTS[name], COMPONENTS[name].make())
    assert found
    for each in found:
        # A draw that is not to be used is known by its log probability.
        assert not np.isnan(each).any() and not np.isposinf(each.astype(np.float64)).any()


@each_component
def test_configuration_makes_another_that_does_the_same(name):
    case = COMPONENTS[name]
    component = case.make()
    serialized = json.dumps(keras.utils.serialize_keras_object(component))
    config = json.dumps(component.get_config())
    with keras.utils.custom_object_scope({"corpus": corpus()}):
        again = type(component).from_config(json.loads(config))
        registered = keras.utils.deserialize_keras_object(json.loads(serialized))
    for made in (again, registered):
        assert type(made) is type(component)
        assert options(made) == options(component)
    assert_same(results(case, case.ready(registered)), results(case, component))


@pytest.mark.parametrize("jit_compile", [False, True])
@each_component
def test_compiled_call_is_that_of_eager_mode(name, jit_compile):
    case = COMPONENTS[name]
    compiled = functools.partial(tf.function, jit_compile=jit_compile)
    # The average of a metric starts anew.
    assert_same(results(case, case.make(), compiled), results(case, case.make()), 1e-4)


@each_component
def test_mixed_precision_costs_no_precision(name):
    case = COMPONENTS[name]
    expected = results(case, case.make())
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        component = case.make()
        found = results(case, component)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert_same(found, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_saved_within_a_model(name, tmp_path):
    inputs = keras.Input([DIM])
    layer = LAYERS[name].make()
    given = (inputs, keras.Input([2], dtype="int32")) if name == "NegativeMiner" else (inputs,)
    model = keras.Model(list(given), list(layer(*given)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"corpus": corpus()})
    values = [QUERIES, ROWS][: len(given)]
    expected, found = ([np.asarray(each) for each in either(values)] for either in (model, loaded))
    assert_same(found, expected)


@pytest.mark.parametrize("name", [*LOSSES, *METRICS])
def test_loss_or_metric_is_saved_with_a_compiled_model(name, tmp_path):
    case = COMPONENTS[name]
    component = case.make()
    model = tower()
    y = np.arange(BATCH) % DIM if name in LOSSES else ROWS
    if name in LOSSES:
        model.compile(loss=component)
    else:
        model.compile(loss="mse", metrics=[component])
    y = y if name in LOSSES else ROWS[:, :1]
    expected = model.evaluate(QUERIES, y, verbose=0, return_dict=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    if name in LOSSES:
        assert loaded.loss.get_config() == component.get_config()
    else:
        compiled = getattr(loaded, "_compile_metrics", None) or loaded.compiled_metrics
        (metric,) = compiled._user_metrics
        assert metric.get_config() == component.get_config()
        assert metric.index is None
        metric.index = index()
    found = loaded.evaluate(QUERIES, y, verbose=0, return_dict=True)
    assert found == pytest.approx(expected, rel=1e-5)


@each_callback
def test_callback_is_made_from_its_configuration(name):
    make_callback, given, _ = CALLBACKS[name]
    callback = make_callback()
    config = json.loads(json.dumps(callback.get_config()))
    again = type(callback).from_config(config, **given)
    assert again.get_config() == callback.get_config()
    assert {"every", *config} == set(config)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_callbacks_log_with_and_without_xla_and_in_mixed_precision(jit_compile, policy):
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = make(Indexed(), jit_compile=jit_compile)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    made = [make_callback() for make_callback, _, _ in CALLBACKS.values()]
    history = train(model, *made, epochs=1)
    for _, _, key in CALLBACKS.values():
        assert np.isfinite(history[key]).all() and len(history[key]) == 1
