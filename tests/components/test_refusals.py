"""Every argument of every public class: what is wrong is refused when the object is made."""

import inspect

import pytest

import tf_dynidx
from tests.callbacks.worlds import TARGET_FEATURES, tower
from tests.components.test_every_component import index
from tf_dynidx import DynamicIndex, TargetCorpus, callbacks, layers, losses, metrics, miners
from tf_dynidx.miners import Tree, Uniform

NAN, INF = float("nan"), float("inf")

# Wrong values, by what an argument is.
COUNT = (0, -1, True, 1.5, "2", NAN)
POSITIVE = (0, -0.1, True, "1", NAN, INF, None)
AT_LEAST_0 = (-0.1, True, "1", NAN, INF)
NUMBER = (True, "1", NAN, INF)
RANK = (-1, True, 1.5, "2", NAN, None)
SEED = (-1, True, 0.5, "1", NAN, None, 2**40)
FLAG = (1, 0, "no", None, NAN)
CHOICE = ("other", True, 3, NAN, None)
MODEL = ("tower", 3, None)
OBJECT = ("such", 3, NAN)
CORPUS = (*OBJECT, None, TARGET_FEATURES)
# Said by Keras, or only known later: the first evaluation says what is wrong with its data.
ELSEWHERE = ()

METRIC = {"k": COUNT, "index": OBJECT, "exact": FLAG, "budget": COUNT, "dtype": ELSEWHERE}
MINER = {"num_negatives": (*COUNT, None), "seed": SEED}
INDEX = {"kernel": CHOICE, "form": CHOICE, "landmarks": CHOICE, "dtype": CHOICE, "refresh_every": COUNT}

ARGUMENTS = {
    "DualEncoder": {
        "query_tower": MODEL,
        "target_tower": MODEL,
        "corpus": CORPUS,
        "miner": (*OBJECT, Tree),
        "temperature": POSITIVE,
        "learn_temperature": FLAG,
        "similarity": CHOICE,
        "sharing": CHOICE,
        "mining_queries": (*COUNT, None),
        "relative_margin": AT_LEAST_0,
        "absolute_margin": AT_LEAST_0,
        "max_score": NUMBER,
        "range_min": RANK,
        "unlabelled_weight": (*AT_LEAST_0, 1.5, None),
        "encode_chunk": COUNT,
        "warmup_examples": RANK,
        "seed": SEED,
    },
    "DynamicIndex": {
        "dim": (*COUNT, None),
        "capacity": (*COUNT, None, 2**40),
        "num_landmarks": COUNT,
        "seed": SEED,
        "placement": CHOICE,
        "flat": FLAG,
        **INDEX,
    },
    "TargetCorpus": {
        "features": (3.0, {}),
        "identifiers": (3, [1.5] * 150, ["a"] * 150, [True] * 150, ["a", "b"]),
        "saved": FLAG,
        "placement": CHOICE,
    },
    "NegativeMiner": {
        "miner": (*OBJECT, None, Tree),
        "corpus": CORPUS,
        "target_tower": MODEL,
        "temperature": POSITIVE,
    },
    "TreeTopK": {
        "query_model": OBJECT,
        "k": (*COUNT, None),
        "capacity": COUNT,
        "budget": COUNT,
        "row_dtype": CHOICE,
        "seed": SEED,
    },
    "SampledSoftmax": {"temperature": POSITIVE, "reduction": ELSEWHERE},
    "CorpusRecall": METRIC,
    "CorpusNDCG": METRIC,
    "CorpusMRR": METRIC,
    "CorpusEvaluation": {
        "data": ELSEWHERE,
        "every": (*COUNT, None),
        "ks": (3, (), (0,), (True,), (1.5,), (NAN,), None),
        "exact": FLAG,
        "exclude": (3, [[1.5]], [["a"]]),
        "batch_size": (*COUNT, None),
        "prefix": (3, None, True),
    },
    "IndexMonitor": {
        "log_dir": (3, True, NAN),
        "every": (*COUNT, None),
        "batch_size": COUNT,
        "seed": SEED,
    },
    "IndexRefresh": {"every": (*COUNT, None), "full": FLAG},
    "Exact": MINER,
    "InBatch": {"seed": SEED},
    "Miner": MINER,
    "Mixed": {
        "miners": (*OBJECT, None, [], [Tree]),
        "weights": ([0], [-1], [True], ["1"], [NAN], [INF], [1, 1]),
        "seed": SEED,
    },
    "NegativeCache": {**MINER, "cache_size": COUNT, "refresh_share": (*POSITIVE, 0.6)},
    "Popularity": {
        **MINER,
        "power": POSITIVE,
        "smoothing": POSITIVE,
        "counts": ([-1.0], [NAN], [INF], ["a"], 3),
    },
    "Stale": {**MINER, "refresh_every": (*COUNT, None)},
    "Stochastic": {**MINER, "num_candidates": (*COUNT, None)},
    "Tree": {**MINER, **INDEX, "budget": COUNT},
    "Uniform": MINER,
}

# What has no default, and is right.
GIVEN = {
    "DualEncoder": lambda: {"query_tower": tower(), "target_tower": tower(), "corpus": corpus()},
    "DynamicIndex": lambda: {"dim": 4, "capacity": 10},
    "TargetCorpus": lambda: {"features": TARGET_FEATURES},
    "NegativeMiner": lambda: {"miner": Uniform(), "corpus": corpus(), "target_tower": tower()},
    "CorpusEvaluation": lambda: {"data": None},
    "Miner": lambda: {"num_negatives": 2},
    "Mixed": lambda: {"miners": [Uniform()]},
    **{name: lambda: {"index": index()} for name in metrics.__all__},
}


def corpus():
    return TargetCorpus(TARGET_FEATURES)


def public_classes():
    """dict from name to class."""
    found = {"DynamicIndex": DynamicIndex, "TargetCorpus": TargetCorpus}
    found["DualEncoder"] = tf_dynidx.DualEncoder
    for module in (callbacks, layers, losses, metrics, miners):
        members = {name: getattr(module, name) for name in module.__all__}
        found |= {name: member for name, member in members.items() if inspect.isclass(member)}
    return found


def test_every_argument_of_every_public_class_is_here():
    """But for names, which Keras and TensorFlow look at."""
    for name, made in public_classes().items():
        kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        parameters = inspect.signature(made).parameters.values()
        expected = {each.name for each in parameters if each.kind in kinds} - {"name"}
        assert set(ARGUMENTS[name]) == expected, name


CASES = [(name, argument) for name in ARGUMENTS for argument, wrong in ARGUMENTS[name].items() if wrong]


@pytest.mark.parametrize("name, argument", CASES)
def test_wrong_value_is_refused_with_what_was_received(name, argument):
    made, given = public_classes()[name], GIVEN.get(name, dict)()
    made(**given)
    for value in ARGUMENTS[name][argument]:
        try:
            made(**given | {argument: value})
        except ValueError as error:
            assert "Received: " in str(error), (value, error)
            assert argument in str(error).lower(), (value, error)
        else:
            pytest.fail(f"{name} took {argument}={value!r}")
