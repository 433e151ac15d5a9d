"""`tf-dynidx bench tfrs`: the task and the top-k layer beside those of TensorFlow Recommenders."""

import dataclasses

from tf_dynidx import files
from tf_dynidx.cli.data import DataError, all_or_none, read_all

PARTS = ("evaluation", "training")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the benchmark can be told.

    Attributes:
        parts: names of parts, of `PARTS`; default: those that there is data for.
        sizes: numbers of random candidates to evaluate on.
        targets, train, test: files as for `tf-dynidx train`, to train on; or none of them.
        seconds: training time of each model; or
        steps: training steps of each, for where other work makes times vary; None: seconds.
        seeds: how many models are trained with each task, with seeds from `seed` up.
        seed: seeds data, weights and draws.
        report: file for the figures, or None.
        progress: whether to show bars.
    """

    parts: tuple[str, ...] | None = None
    sizes: tuple[int, ...] = (100_000, 1_000_000)
    targets: str | None = None
    train: str | None = None
    test: str | None = None
    seconds: float = 120.0
    steps: int | None = None
    seeds: int = 3
    seed: int = 0
    report: str | None = None
    progress: bool = True


def check(settings):
    """Refuses what could not be run; needs no TensorFlow.

    Returns:
        The settings, their parts filled in.

    Raises:
        DataError, OutputError: files are missing or not asked for, or the report cannot be written.
    """
    if settings.report:
        files.check_writable_target(settings.report, "file")
    given = all_or_none(settings)
    parts = settings.parts or PARTS[: 1 + given]
    if given != ("training" in parts):
        raise DataError(
            "The part training, and no other, takes --targets, --train and --test. Received: --parts "
            f"{','.join(parts)} {'with' if given else 'without'} them. Give both, or neither."
        )
    return dataclasses.replace(settings, parts=parts)


def bench_tfrs(settings):
    """Runs the parts, prints their tables and writes the report.

    Args:
        settings: `Settings` that `check` has returned.

    Returns:
        int, the exit status, as `run_parts` of bench/tables.py.

    Raises:
        DataError: this is not Keras 2, TensorFlow Recommenders is missing, or a file cannot be used.
    """
    try:
        import tf_dynidx.tfrs  # noqa: F401
    except ImportError as error:
        raise DataError(str(error)) from error
    data = None
    if "training" in settings.parts:
        data = read_all(settings.targets, settings.train, settings.test)
    from tf_dynidx.cli.bench import tfrs_evaluation, tfrs_training
    from tf_dynidx.cli.bench.tables import run_parts

    made = {
        "evaluation": lambda: tfrs_evaluation.evaluation(settings),
        "training": lambda: tfrs_training.training(settings, *data),
    }
    titles = tfrs_evaluation.TITLES | tfrs_training.TITLES
    return run_parts(titles, (made[part]() for part in settings.parts), settings)
