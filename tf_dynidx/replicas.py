"""Several devices, one batch: what the replicas of a `tf.distribute` strategy share in a step.

A replica encodes its part of the batch and mines for it. Its queries then see the candidates of all
replicas, which are gathered, and every replica takes all of them in: state is one copy a replica, and
all copies change alike. With one replica nothing here adds an operation to a step.
"""

import contextlib
from typing import NamedTuple

import tensorflow as tf

_SCATTERS = (
    *("scatter_add", "scatter_sub", "scatter_mul", "scatter_div", "scatter_min", "scatter_max"),
    *("scatter_update", "batch_scatter_update"),
    *("scatter_nd_add", "scatter_nd_sub", "scatter_nd_update"),
)
_READS = "sparse_read", "gather_nd"


def number():
    """int, how many replicas take this step together; 1 outside of a replica's step."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def this():
    """int, which of them this one is, from 0."""
    if number() == 1:
        return 0
    place = tf.distribute.get_replica_context().replica_id_in_sync_group
    static = tf.get_static_value(place)
    return place if static is None else int(static)


# State.


@contextlib.contextmanager
def copied():
    """Variables that are made in here are kept as one copy a replica, outside of a strategy as ever.

    A step writes the copy of its replica, and no other: all replicas must write the same. What is
    written outside of a step is written to all copies, and what is read or saved there is the first.
    """
    if not tf.distribute.has_strategy():
        yield
        return

    def create(next_creator, **kwargs):
        kwargs["synchronization"] = tf.VariableSynchronization.ON_READ
        kwargs["aggregation"] = tf.VariableAggregation.ONLY_FIRST_REPLICA
        variable = next_creator(**kwargs)
        if isinstance(variable, tf.distribute.DistributedValues):
            _let_scatter(variable)
        return variable

    with tf.variable_creator_scope(create):
        yield


def check_copied(*modules):
    """Raises a ValueError where replicas would race for the variables of `tf.Module`s."""
    if number() == 1:
        return
    for module in modules:
        for variable in module.variables:
            if not isinstance(variable, tf.distribute.DistributedValues):
                raise ValueError(
                    "Make models, miners and tasks in the strategy's scope: with strategy.scope(): ... "
                    f"Received: {variable.name!r}, which was made outside of it, in a step of "
                    f"{number()} replicas"
                )


def once(function):
    """Calls a function eagerly, once for all replicas; also while their step is traced."""
    if number() == 1:
        with tf.init_scope():
            function()
        return

    def call(strategy):
        with tf.init_scope(), strategy.scope():
            function()

    tf.distribute.get_replica_context().merge_call(call)


def _let_scatter(variable):
    """Gives a variable of several copies what `tf.distribute` refuses, or does by reading all of it."""

    def writing(name):
        def scatter(*args, **kwargs):
            for copy in _copies(variable):
                getattr(copy, name)(*args, **kwargs)

        return scatter

    def reading(name):
        return lambda *args, **kwargs: getattr(_copies(variable)[0], name)(*args, **kwargs)

    for name in _SCATTERS:
        setattr(variable, name, writing(name))
    for name in _READS:
        setattr(variable, name, reading(name))


def _copies(variable):
    """This replica's copy of a variable within a step; outside, all of this process."""
    strategy = variable.distribute_strategy
    copies = strategy.experimental_local_results(variable)
    context = tf.distribute.get_replica_context()
    if context is None or context.strategy is not strategy:
        return copies
    # Every process of a strategy has as many replicas.
    place = this() % len(copies)
    return copies[place : place + 1]


# Communication.


def gathered(tensor, first=None):
    """What all replicas have, in their order; its gradient finds its way back to each.

    Args:
        tensor: float32, int32, int64 or bool [n, ...], n being the replica's own. Not empty on all
            replicas, which TensorFlow (2.21) does not survive.
        first: int32 scalar; the first so many of every replica come before the rest of any. Default
            None: all that the first replica has comes first. There must be first ones, and a rest.
    """
    if number() == 1:
        return tensor
    if tensor.dtype == tf.bool:
        return tf.cast(gathered(tf.cast(tensor, tf.int32), first), tf.bool)
    context = tf.distribute.get_replica_context()
    if first is None:
        return context.all_gather(tensor, axis=0)
    return tf.concat(context.all_gather([tensor[:first], tensor[first:]], axis=0), axis=0)


class Span(NamedTuple):
    """Where what is this replica's comes among what is `gathered`.

    Attributes:
        places: int32 [size].
        start: int32 scalar or int, how many come before; first ones, if there are `first` ones.
        total: int32 scalar, how many all replicas have.
    """

    places: tf.Tensor
    start: tf.Tensor | int
    total: tf.Tensor


def span(size):
    """`Span` of what a replica has so many of, int32 scalar."""
    if number() == 1:
        return Span(tf.range(size), 0, size)
    sizes = gathered(tf.reshape(size, [1]))
    start = tf.reduce_sum(sizes[: this()])
    return Span(tf.range(size) + start, start, tf.reduce_sum(sizes))


def summed(value):
    """The sum over replicas of a float tensor; no gradient."""
    if number() == 1:
        return value
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stop_gradient(value))


def share(value):
    """This replica's share of what is the same on all: their shares add up to it."""
    return value if number() == 1 else value / number()


def of_share(value):
    """What the mean over replicas of is the sum of their shares."""
    return value if number() == 1 else value * number()


def log_summed(log_prob):
    """Log probabilities of all queries, of those of this replica's queries, for sums over queries.

    Args:
        log_prob: float32 [queries, rows], or [1, rows] where the queries of all replicas draw alike.

    Returns:
        float32 [replicas, rows], of which exp(.) is summed over the queries of each; or as it was.
    """
    if number() == 1 or log_prob.shape[0] == 1:
        return log_prob
    return gathered(tf.reduce_logsumexp(log_prob, axis=0, keepdims=True))


def seed_apart(seed):
    """A seed, int32 [2], that is another for every replica."""
    if number() == 1:
        return seed
    return tf.random.fold_in(seed, this(), alg="philox")
