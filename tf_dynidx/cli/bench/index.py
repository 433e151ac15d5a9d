"""`tf-dynidx bench index`: measures the index by itself: sampler, search, speed, upkeep."""

import dataclasses
import importlib

from tf_dynidx import files
from tf_dynidx.cli import encodings
from tf_dynidx.cli.data import DataError, all_or_none, given_files, read_pairs, read_targets

PARTS = ("sampler", "search", "speed", "upkeep", "peers", "large")
DEFAULT_PARTS = ("sampler", "search", "speed", "upkeep")

_ON_ENCODINGS = ("sampler", "search")  # parts that are measured on real encodings, where given
_ROWS, _DIM, _QUERIES = 100_000, 64, 1024  # of random encodings where there are no real ones


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the benchmark can be told.

    Attributes:
        parts: names of parts, of `PARTS`.
        targets, train, test: files as for `tf-dynidx train`, to train a model on whose encodings are
            measured on; or
        encodings: file with encodings; or none of these: random encodings alone.
        steps: training steps.
        max_rows: the largest number of random targets of any part but `large`.
        rows: the number of targets of `large`; None for its default.
        seed: seeds encodings, index and draws.
        report: file for the figures, or None.
        progress: whether to show bars.
    """

    parts: tuple[str, ...] = DEFAULT_PARTS
    targets: str | None = None
    train: str | None = None
    test: str | None = None
    encodings: str | None = None
    steps: int = 1000
    max_rows: int = 1_000_000
    rows: int | None = None
    seed: int = 0
    report: str | None = None
    progress: bool = True


def read_inputs(settings):
    """Reads what the benchmark is to be run on; needs no TensorFlow.

    Returns:
        `Encodings`, or arguments of `encodings.trained`, or None for random encodings alone.

    Raises:
        DataError, ValueError, OSError: something that could not be used, or could not be written.
    """
    if settings.report:
        files.check_writable_target(settings.report, "file")
    given = given_files(settings)
    real = [*given, "--encodings"] if settings.encodings else given
    if settings.encodings and given:
        raise DataError(
            "Real encodings come from a model trained on --targets, --train and --test, or from "
            f"--encodings, not both. Received: {' '.join(real)}. Leave one out."
        )
    all_or_none(settings)
    if real and not set(settings.parts) & set(_ON_ENCODINGS):
        raise DataError(
            f"Real encodings are for the parts {' and '.join(_ON_ENCODINGS)}. Received: "
            f"{' '.join(real)} with --parts {','.join(settings.parts)}. Add one of these parts."
        )
    if settings.rows is not None and "large" not in settings.parts:
        raise DataError(
            "--rows is the number of targets of the part large. Received: --rows "
            f"{settings.rows} with --parts {','.join(settings.parts)}. Add large, or use --max-rows."
        )
    if settings.encodings:
        return encodings.read(settings.encodings)
    if given:
        targets = read_targets(settings.targets)
        if len(targets.identifiers) < encodings.MIN_TARGETS:
            raise DataError(
                f"{settings.targets}: at least {encodings.MIN_TARGETS} targets are needed to measure "
                f"on. Received: {len(targets.identifiers)}. Without any, random encodings are used."
            )
        pairs = read_pairs(settings.train, targets)
        return targets, pairs, read_pairs(settings.test, targets)
    return None


def bench_index(settings, inputs):
    """Runs the parts, prints their tables and writes the report.

    Args:
        settings: `Settings`.
        inputs: what `read_inputs` returned.

    Returns:
        int, the exit status, as `run_parts` of bench/tables.py.
    """
    from tf_dynidx.cli.bench.tables import run_parts

    modules = {name: importlib.import_module(f"tf_dynidx.cli.bench.{name}") for name in settings.parts}
    if "peers" in modules:
        modules["peers"].check()
    titles = {name: title for module in modules.values() for name, title in module.TITLES.items()}
    return run_parts(titles, _parts(modules, inputs, settings), settings)


def _parts(modules, inputs, settings):
    """What each part measures, one after the other."""
    from tf_dynidx.cli.bench.measure import Note

    if inputs is None and set(modules) & set(_ON_ENCODINGS):
        yield [
            Note(
                "No real encodings were given (--targets, --train and --test, or --encodings): random "
                "clustered ones alone."
            )
        ]
    some = None
    for part, module in modules.items():
        if part in _ON_ENCODINGS:
            some = some or _all_encodings(inputs, settings)
            yield getattr(module, part)(some, settings)
        else:
            yield getattr(module, part)(settings)


def _all_encodings(inputs, settings):
    """The real encodings, where there are any, and random ones of the same size."""
    if inputs is None:
        number, dim = min(_ROWS, settings.max_rows), _DIM
        return [encodings.clustered(number, dim, _QUERIES, settings.seed)]
    real = inputs
    if not isinstance(real, encodings.Encodings):
        real = encodings.trained(*inputs, settings.steps, settings.seed, settings.progress)
    return [real, encodings.clustered(*real.targets.shape, _QUERIES, settings.seed)]
