import numpy as np
import pytest
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tf_dynidx import TargetCorpus
from tf_dynidx.keras_world import keras
from tf_dynidx.miners import InBatch, Miner, Popularity, Tree, Uniform
from tf_dynidx.tfrs import MinedRetrieval, TreeTopK

SIZE, DIM, BATCH = 30, 4, 5
LEFT_OUT = float(np.finfo(np.float32).min) / 100.0

rng = np.random.default_rng(0)
FEATURES = rng.normal(size=[SIZE, DIM]).astype(np.float32)
NAMES = np.array([f"titul {row}" for row in range(SIZE)])
QUERIES = rng.normal(size=[BATCH, DIM]).astype(np.float32)
IDS = np.array([3, 9, 3, 20, 7], np.int32)  # one twice


class Given(Miner):
    """Draws the rows it was made with, each as probable as it was told."""

    def __init__(self, rows=((4, 9),) * BATCH, log_prob=-2.0):
        super().__init__(len(rows[0]))
        self.rows, self.log_probability, self.seen = rows, log_prob, []

    def mine(self, queries, beta, positives):
        self.queries = queries
        return tf.constant(self.rows, tf.int32), None

    def log_prob(self, rows, queries, beta, positives, drawn):
        return tf.fill([tf.shape(queries)[0], tf.shape(rows)[0]], self.log_probability)

    def observe(self, rows, encodings):
        tf.py_function(lambda *each: self.seen.append(each), [rows, encodings], [])


def tower(dropout=0.0):
    model = keras.Sequential([keras.layers.Dense(DIM, use_bias=False), keras.layers.Dropout(dropout)])
    model.build([None, DIM])
    return model if dropout else keras.Sequential([keras.layers.Dense(DIM, use_bias=False)])


def make(miner=None, model=None, names=NAMES, **options):
    keras.utils.set_random_seed(0)
    model = model or tower()
    corpus = TargetCorpus(FEATURES, names)
    return MinedRetrieval(model, corpus, miner if miner is not None else Given(), **options)


def encoded(task, rows=IDS):
    return task.encode_rows(tf.constant(rows))


def reference(
    task,
    queries,
    given,
    ids,
    probability,
    score_mask=None,
    temperature=0.5,
    hardest=None,
    named=True,
):
    """Losses of each query, by enumeration of the candidates; `named`: the task is told the ids."""
    mined = np.ravel(task.miner.rows)
    table = np.concatenate([given, task.encode_rows(tf.constant(mined, tf.int32))])
    rows = np.concatenate([ids, mined])
    scores = queries @ table.T
    scores = (scores.max(1) if queries.ndim == 3 else scores) / temperature
    draws = len(task.miner.rows) * task.miner.num_negatives * np.exp(task.miner.log_probability)
    losses = []
    for query in range(len(queries)):
        others = []
        for place, row in enumerate(rows):
            allowed = score_mask is None or place >= len(given) or score_mask[query, place]
            if row != rows[query] and allowed:
                mined_too = draws if named or place >= len(given) else 0.0
                expected = mined_too + (len(given) - 1) * probability(row)
                others.append(scores[query, place] - np.log(expected))
        others = sorted(others)[-hardest:] if hardest else others
        own = scores[query, query]
        losses.append(np.log(np.sum(np.exp(np.array([own, *others])))) - own)
    return np.array(losses)


def share(row):
    """How often a row is a positive, before anything was seen."""
    return 1.0 / SIZE


@pytest.mark.parametrize("ids", [IDS, NAMES[IDS]], ids=["rows", "strings"])
def test_loss_is_that_of_enumeration(ids):
    task = make(temperature=0.5)
    given = encoded(task)
    expected = reference(task, QUERIES, given, IDS, share)
    np.testing.assert_allclose(task(QUERIES, given, candidate_ids=ids), expected.sum(), rtol=1e-5)
    weight = np.arange(BATCH, dtype=np.float32)
    loss = task(QUERIES, given, sample_weight=weight, candidate_ids=ids)
    np.testing.assert_allclose(loss, expected @ weight, rtol=1e-5)
    mask = np.random.default_rng(1).random([BATCH, BATCH]) < 0.5
    mask |= np.eye(BATCH, dtype=bool)
    loss = task(QUERIES, given, candidate_ids=ids, score_mask=mask)
    expected = reference(task, QUERIES, given, IDS, share, score_mask=mask)
    np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)


@pytest.mark.parametrize("accidental", [False, True])
def test_hard_negatives_are_the_largest_and_accidental_hits_are_out_either_way(accidental):
    task = make(temperature=0.5, num_hard_negatives=3, remove_accidental_hits=accidental)
    given = encoded(task)
    expected = reference(task, QUERIES, given, IDS, share, hardest=3)
    np.testing.assert_allclose(task(QUERIES, given, candidate_ids=IDS), expected.sum(), rtol=1e-5)


def test_several_heads_are_mined_for_and_scored_by_the_best():
    heads = np.stack([QUERIES, -QUERIES[::-1]], axis=1)
    task = make(Given(((4, 9),) * 2 * BATCH), temperature=0.5)
    given = encoded(task)
    expected = reference(task, heads, given, IDS, share)
    np.testing.assert_allclose(task(heads, given, candidate_ids=IDS), expected.sum(), rtol=1e-5)
    np.testing.assert_array_equal(task.miner.queries, heads.reshape(-1, DIM))


def test_negatives_are_drawn_for_some_queries_and_shared_by_all():
    task = make(Given(((4, 9),) * 2), temperature=0.5, mining_queries=2)
    given = encoded(task)
    expected = reference(task, QUERIES, given, IDS, share)
    np.testing.assert_allclose(task(QUERIES, given, candidate_ids=IDS), expected.sum(), rtol=1e-5)
    np.testing.assert_array_equal(task.miner.queries, QUERIES[[0, 2]])


@pytest.mark.parametrize("scale", [0.02, 1e-12])
def test_sampling_probability_corrects_unclipped_and_holds_for_mined_rows_too(scale):
    probability = (1 + np.arange(SIZE)) * scale
    task = make(Given(((9, 9),) * BATCH, -60.0), temperature=0.5)  # 9 is in the batch
    given = encoded(task)
    stated = probability[IDS].astype(np.float32)
    loss = task(QUERIES, given, candidate_sampling_probability=stated, candidate_ids=IDS)
    expected = reference(task, QUERIES, given, IDS, lambda row: probability[row])
    np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)


def test_gradient_is_that_of_the_loss_and_reaches_both_towers():
    task = make(temperature=0.5)
    task.prepare()
    queries = tf.Variable(QUERIES)

    def gradients():
        with tf.GradientTape() as tape:
            loss = task(queries, encoded(task), candidate_ids=IDS)
        return tape.gradient(loss, [queries, *task.candidate_model.trainable_variables])

    first = gradients()
    for place, (variable, gradient) in enumerate(
        zip([queries, task.candidate_model.trainable_variables[0]], first, strict=True)
    ):
        step = np.zeros(variable.shape, np.float32)
        step[place, 1] = 1e-2
        values = []
        for sign in (1, -1):
            variable.assign_add(sign * step)
            values.append(reference(task, queries.numpy(), encoded(task), IDS, share).sum())
            variable.assign_sub(sign * step)
        slope = (values[0] - values[1]) / 2e-2
        assert float(gradient[place, 1]) == pytest.approx(slope, rel=2e-2, abs=2e-2)


def test_training_writes_back_in_inference_mode_and_evaluation_does_not():
    task = make(model=tower(dropout=0.5))
    given = encoded(task)
    for call in (
        lambda: task(QUERIES, given, candidate_ids=IDS),
        lambda: tf.function(lambda: task(QUERIES, given, candidate_ids=IDS))(),
    ):
        call()
        assert not task.miner.seen
    with tf.GradientTape():
        task(QUERIES, given, candidate_ids=IDS, training=False)
        assert not task.miner.seen
        task(QUERIES, given, candidate_ids=IDS)
    task(QUERIES, given, candidate_ids=IDS, training=True)
    assert len(task.miner.seen) == 2
    for rows, encodings in task.miner.seen:
        np.testing.assert_array_equal(rows, np.concatenate([IDS, np.ravel(task.miner.rows)]))
        np.testing.assert_allclose(encodings, task.encode_rows(rows), atol=1e-6)
    assert task.frequencies.counts.numpy()[3] == 4


def test_miner_is_told_the_positives_of_training():
    task = make(Popularity(2))
    given, ids = encoded(task), np.where(IDS == 7, -1, IDS)  # one is not in the corpus
    task(QUERIES, given, candidate_ids=ids)
    task(QUERIES, given, candidate_ids=ids, training=True)
    expected = np.bincount([3, 9, 3, 20], minlength=SIZE)
    np.testing.assert_array_equal(task.miner.counts, expected)


def test_extra_negatives_work_with_ids_and_factorized_metrics():
    task = make()
    top = TreeTopK(k=10, budget=SIZE).index(task.encode_rows(tf.range(SIZE)), NAMES)
    task.factorized_metrics = [tfrs.metrics.FactorizedTopK(top, ks=(1, SIZE))]
    extra = np.concatenate([IDS, [11, 12]]).astype(np.int32)
    given = encoded(task, extra)
    for ids in (NAMES[extra], NAMES[IDS]):
        mask = np.ones([BATCH, len(extra)], bool)
        assert np.isfinite(task(QUERIES, given, candidate_ids=ids, score_mask=mask))
    assert float(task.factorized_metrics[0].result()[1]) == 1.0
    expected = reference(task, QUERIES, given, extra, share, temperature=1.0)
    loss = task(QUERIES, given, candidate_ids=extra, compute_metrics=False)
    np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)


def test_identifiers_that_the_corpus_does_not_hold_are_trained_on():
    task = make()
    names = NAMES[IDS].astype("<U20")
    names[:2] = "nowhere", "elsewhere"
    loss = task(QUERIES, encoded(task), candidate_ids=names, training=True)
    assert np.isfinite(loss)
    assert task.frequencies.counts.numpy().sum() == BATCH - 2


def test_call_without_ids_knows_a_positive_by_its_encoding():
    # Rows 3 and 9 are positives; 9 is mined as well, and so must not be a negative of its own query.
    task = make(temperature=0.5)
    given = encoded(task)
    expected = reference(task, QUERIES, given, IDS, share, named=False)
    with pytest.warns(UserWarning, match="without candidate_ids.*Pass candidate_ids") as warned:
        for training in (True, False):
            loss = task(QUERIES, given, training=training)
            np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)
    assert len(warned) == 1
    # Nothing is known of what was given: it is not counted, and not written back.
    assert task.frequencies.total.numpy() == 0
    ((rows, _),) = task.miner.seen
    np.testing.assert_array_equal(rows, [-1] * BATCH + [4, 9] * BATCH)
    heads = np.stack([QUERIES, -QUERIES[::-1]], axis=1)
    task = make(Given(((4, 9),) * 2 * BATCH), temperature=0.5)
    with pytest.warns(UserWarning, match="without candidate_ids"):
        loss = task(heads, given)
    expected = reference(task, heads, given, IDS, share, named=False)
    np.testing.assert_allclose(loss, expected.sum(), rtol=1e-5)


def test_metrics_are_updated_when_asked_for():
    accuracy = keras.metrics.CategoricalAccuracy()
    mean = keras.metrics.Mean()
    task = make(batch_metrics=[accuracy], loss_metrics=[mean])
    top = TreeTopK(k=5, budget=SIZE).index(encoded(task, np.arange(SIZE, dtype=np.int32)))
    metric = tfrs.metrics.FactorizedTopK(top, ks=(5,))
    task.factorized_metrics = [metric]
    given = encoded(task)
    # Every query is a long look at its own candidate's direction.
    queries = 10.0 * given
    loss = task(queries, given, candidate_ids=IDS, compute_metrics=False, compute_batch_metrics=False)
    assert mean.result() == loss
    assert accuracy.count.numpy() == metric.metrics[0].count.numpy() == 0
    task(queries, given, candidate_ids=IDS)
    assert accuracy.count.numpy() == metric.metrics[0].count.numpy() == BATCH
    found = np.argsort(-(queries.numpy() @ encoded(task, np.arange(SIZE, dtype=np.int32)).numpy().T))
    share_found = np.mean([row in each[:5] for row, each in zip(IDS, found, strict=True)])
    assert float(metric.result()[0]) == pytest.approx(share_found)


def test_a_loss_of_the_users_sees_labels_and_logits():
    seen = []

    def loss(y_true, y_pred, sample_weight=None):
        seen.append((y_true, y_pred))
        return tf.reduce_sum(y_pred)

    task = make(loss=loss)
    task(QUERIES, encoded(task), candidate_ids=IDS)
    labels, logits = seen[0]
    np.testing.assert_array_equal(labels, np.eye(BATCH, 3 * BATCH))
    assert logits[0, 2] == np.float32(LEFT_OUT)  # the same candidate twice
    assert np.isfinite(logits).all()


def test_bad_arguments_are_refused():
    task = make()
    with pytest.raises(ValueError, match="Received: shape .*dtype float32"):
        task(QUERIES, encoded(task), candidate_ids=QUERIES[:, 0])
    with pytest.raises(ValueError, match="must be a miner.*Received: 'tree'"):
        make(miner="tree")
    with pytest.raises(ValueError, match="positive and finite. Received: temperature=0"):
        make(temperature=0)
    with pytest.raises(ValueError, match="mining_queries .*Received: mining_queries=0"):
        make(mining_queries=0)
    with pytest.raises(ValueError, match="must be a TargetCorpus. Received: ndarray"):
        MinedRetrieval(tower(), FEATURES)
    with pytest.raises(ValueError, match="candidate_model must be .*Received: None"):
        MinedRetrieval(None, TargetCorpus(FEATURES))


def test_configuration_makes_the_same_task():
    task = make(
        Uniform(3),
        temperature=0.2,
        num_hard_negatives=4,
        remove_accidental_hits=True,
        batch_metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
        name="retrieval",
    )
    encoded(task)
    with keras.utils.custom_object_scope({"corpus": task.corpus}):
        again = MinedRetrieval.from_config(task.get_config())
    assert again.corpus is task.corpus
    assert again.get_config() == task.get_config()


class Both(tfrs.Model):
    """Retrieval and ranking, on strings."""

    def __init__(self, miner):
        super().__init__()
        lookup = keras.layers.StringLookup(vocabulary=NAMES)
        self.query_model = keras.layers.Embedding(BATCH, DIM)
        self.candidate_model = keras.Sequential([lookup, keras.layers.Embedding(SIZE + 1, DIM)])
        self.rating = keras.layers.Dense(1)
        self.ranking = tfrs.tasks.Ranking(loss=keras.losses.MeanSquaredError())
        self.top = TreeTopK(k=5, budget=SIZE)
        self.top.index(self.candidate_model(tf.constant(NAMES)), NAMES)
        self.retrieval = MinedRetrieval(
            self.candidate_model,
            TargetCorpus(NAMES, NAMES),
            miner,
            metrics=tfrs.metrics.FactorizedTopK(self.top, ks=(1, 5)),
        )

    def compute_loss(self, inputs, training=False):
        queries, titles = self.query_model(inputs["user"]), self.candidate_model(inputs["title"])
        rating = self.rating(tf.concat([queries, titles], axis=1))
        return self.ranking(labels=inputs["rating"], predictions=rating) + self.retrieval(
            queries, titles, candidate_ids=inputs["title"], compute_metrics=not training
        )


@pytest.mark.parametrize("miner", [Tree(), InBatch()], ids=["tree", "in batch"])
def test_model_of_two_tasks_is_fitted_and_evaluated(miner):
    keras.utils.set_random_seed(0)
    model = Both(miner)
    model.compile(keras.optimizers.Adagrad(0.1))
    data = {"user": np.arange(BATCH), "title": NAMES[IDS], "rating": np.ones([BATCH], np.float32)}
    dataset = tf.data.Dataset.from_tensor_slices(data).repeat(2).batch(BATCH)
    before = model.candidate_model(tf.constant(NAMES)).numpy()
    history = model.fit(dataset, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert (model.candidate_model(tf.constant(NAMES)).numpy() != before).any()
    assert model.retrieval.frequencies.total.numpy() == 6 * BATCH
    model.top.index(model.candidate_model(tf.constant(NAMES)), NAMES)
    result = model.evaluate(dataset, return_dict=True, verbose=0)
    assert 0 < result["factorized_top_k/top_5_categorical_accuracy"] <= 1
    assert model.retrieval.frequencies.total.numpy() == 6 * BATCH


@pytest.mark.parametrize("placement", ["device", "host"])
def test_draws_are_compiled_but_where_the_index_is_on_the_host(placement):
    """XLA compiles for one device, and could not read there what the other holds."""
    task = MinedRetrieval(tower(), TargetCorpus(FEATURES, placement=placement), Tree()).prepare()

    @tf.function
    def step(queries, candidates, ids):
        return task(queries, candidates, candidate_ids=ids, training=True)

    arguments = tf.constant(QUERIES), encoded(task), tf.constant(IDS)
    functions = step.get_concrete_function(*arguments).graph.as_graph_def().library.function
    compiled = [each for each in functions if each.attr["_XlaMustCompile"].b]
    assert bool(compiled) == (placement == "device")
    assert np.isfinite(step(*arguments))
