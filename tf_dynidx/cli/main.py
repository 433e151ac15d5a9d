"""The command `tf-dynidx`: train, compare, search, export, serve, demo, bench."""

import argparse
import dataclasses
import os
import sys

from tf_dynidx.cli.arguments import count, port, positive_int, positive_number, seed, share
from tf_dynidx.cli.bench import index as bench_index
from tf_dynidx.cli.bench import methods as bench_methods
from tf_dynidx.cli.bench import tfrs as bench_tfrs
from tf_dynidx.cli.compare import methods
from tf_dynidx.cli.data import DataError
from tf_dynidx.cli.settings import BUDGETS, MINERS, SHARINGS, Settings
from tf_dynidx.cli.start import import_tensorflow

_FEWEST_ROWS = 1000  # of a benchmark


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status: 0 done, 1 refused or failed, 130 stopped."""
    # TensorFlow narrates its start-up on standard error unless told otherwise before it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (DataError, ValueError, OSError) as error:
        print(f"tf-dynidx {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"tf-dynidx {options.command}: stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tf-dynidx",
        description="Train two-tower retrieval models with dynamically mined negatives.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_train(commands)
    _add_compare(commands)
    _add_search(commands)
    _add_export(commands)
    _add_serve(commands)
    _add_bench(commands)
    return parser


def _add_demo(commands):
    demo = commands.add_parser(
        "demo",
        help="train on the docstrings of the installed packages, in minutes, with no network",
        description="Trains a search over the code that is installed, once with in-batch and once "
        "with mined negatives for the same time, compares the two, exports the better one and asks "
        "it five questions. Ctrl-C keeps what has been trained.",
    )
    demo.add_argument(
        "--seconds", type=positive_number, default=150.0, help="training time of each (default 150)"
    )
    demo.add_argument(
        "--output",
        default="tf-dynidx-demo",
        metavar="DIR",
        help="folder for plot, reports and export (default tf-dynidx-demo)",
    )
    demo.add_argument("--seed", type=seed, default=0, help="default 0")
    demo.set_defaults(run=_run_demo)


def _add_train(commands):
    train = commands.add_parser(
        "train",
        help="train a model on your own pairs",
        description="Trains a two-tower model on JSON lines (gzipped or not) and measures it on test "
        'queries against all targets. A line of TARGETS is {"id": str, "text": str}; a line of TRAIN '
        'or TEST is {"query": str, "target": id} or {"query": str, "targets": [id, ...]}. Ctrl-C ends '
        "the training early; what has been trained is measured and written.",
    )
    _add_training(train)
    train.add_argument(
        "--miner", choices=list(MINERS), default="tree", help="where negatives come from (default tree)"
    )
    train.add_argument("--report", metavar="FILE", help="write the figures here, as JSON")
    train.add_argument("--export", metavar="DIR", help="write a SavedModel here")
    train.set_defaults(run=_run_train)


def _add_training(command):
    """What `train` and `compare` have in common: the data, the model, the budget."""
    command.add_argument("--targets", required=True, metavar="FILE", help="all targets")
    command.add_argument("--train", required=True, metavar="FILE", help="training pairs")
    command.add_argument("--test", required=True, metavar="FILE", help="test pairs")
    command.add_argument(
        "--encoder",
        choices=["text", "id"],
        default="text",
        help="text: towers over hashed word pieces; id: an embedding for each query and each target, "
        "and a query's training positives are left out of its ranking (default text)",
    )
    budget = command.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=positive_int, metavar="N", help="default: ten epochs")
    budget.add_argument(
        "--seconds", type=positive_number, metavar="S", help="training time, evaluation apart"
    )
    budget.add_argument(
        "--encoder-calls",
        type=positive_int,
        metavar="N",
        help="targets encoded in training, by the steps and by the miner, evaluation apart",
    )
    command.add_argument("--batch", type=positive_int, default=512, help="queries a step (default 512)")
    command.add_argument(
        "--negatives",
        type=positive_int,
        default=2,
        help="mined negatives a query, shared by the batch (default 2)",
    )
    command.add_argument(
        "--mining-queries",
        type=positive_int,
        default=256,
        metavar="N",
        help="for how many queries of a batch, at most, negatives are drawn, where it shares them "
        "(default 256)",
    )
    command.add_argument(
        "--warmup-examples",
        type=count,
        default=0,
        metavar="N",
        help="examples that are trained on before anything is mined, with the positives of the batch "
        "as negatives; the number of targets is a good measure where encoding is what takes long "
        "(default 0)",
    )
    command.add_argument(
        "--reads",
        type=positive_int,
        metavar="N",
        help="rows that the tree scores for a query: more come nearer to the softmax and take longer "
        "(default all; of more than 250,000 targets 192, or 25 for each of its negatives)",
    )
    command.add_argument(
        "--sharing",
        choices=SHARINGS,
        default="batch",
        help="batch: a query sees the positives and negatives of all queries of its batch; none: its "
        "own alone, which takes tens of negatives a query (default batch)",
    )
    command.add_argument(
        "--unlabelled-weight",
        type=share,
        default=1.0,
        help="from 0 to 1: what a target without a training pair counts as a negative; 0 for test "
        "targets that were split off from training (default 1)",
    )
    command.add_argument("--dim", type=positive_int, default=64, help="default 64")
    command.add_argument(
        "--temperature", type=positive_number, help="default 0.05, with --encoder id 0.1"
    )
    command.add_argument("--seed", type=seed, default=0, help="default 0")


def _add_compare(commands):
    compare = commands.add_parser(
        "compare",
        help="train with several miners on your own pairs, and compare them",
        description="Trains a model with each of several miners on the same data, with the same "
        "encoder, seeds and budget, each in a process of its own, and compares what comes out: a "
        "table, a plot and a page. Files as for `tf-dynidx train`. Stopped, it goes on where it was "
        "when the same command is run again.",
    )
    _add_training(compare)
    compare.add_argument(
        "--miners",
        type=methods.read,
        required=True,
        metavar="MINER,...",
        help=f"of {', '.join(MINERS)}; settings of one miner's own follow its name, as in "
        "in-batch:batch=1024:learning_rate=0.01 "
        f"({', '.join(methods.OWN)})",
    )
    compare.add_argument(
        "--seeds", type=positive_int, default=3, metavar="N", help="from --seed up (default 3)"
    )
    compare.add_argument(
        "--output",
        default="comparison",
        metavar="DIR",
        help="folder for the figures, the plot and the page (default comparison)",
    )
    compare.set_defaults(run=_run_compare)


def _add_search(commands):
    search = commands.add_parser(
        "search",
        help="ask an exported model",
        description="Answers a query from an export of `tf-dynidx train` or `tf-dynidx demo`.",
    )
    search.add_argument(
        "export",
        metavar="DIR",
        help="folder of the export, or of versions, of which the newest answers",
    )
    search.add_argument("query", nargs="+", help="one query or more, each in quotes")
    search.add_argument("-k", type=positive_int, default=10, help="results a query (default 10)")
    search.set_defaults(run=_run_search)


def _add_export(commands):
    export = commands.add_parser(
        "export",
        help="the next version of an export: other targets, or the same packed another way",
        description="Writes a new version of an export, without training, encoding only what is added "
        "or updated. Targets are JSON lines as for `tf-dynidx train`. Without changes of targets the "
        "same ones are packed another way.",
    )
    export.add_argument("export", metavar="DIR", help="folder of the export, or of its versions")
    export.add_argument(
        "--output",
        metavar="DIR",
        help="folder of versions that the new one joins (default: DIR, if it has versions)",
    )
    export.add_argument("--added", metavar="FILE", help="targets that are new")
    export.add_argument("--updated", metavar="FILE", help="targets whose texts have changed")
    export.add_argument("--removed", metavar="FILE", help="identifiers of targets that go, one a line")
    export.add_argument(
        "--index", choices=["exact", "tree"], help="how targets are found (default: as before)"
    )
    export.add_argument(
        "--row-dtype",
        choices=["float32", "float16", "int8"],
        help="in which targets are kept (default: as before)",
    )
    export.add_argument("--budget", type=positive_int, help="targets that a tree scores for a query")
    export.add_argument("-k", type=positive_int, help="results a query, at most (default: as before)")
    export.set_defaults(run=_run_export)


def _add_serve(commands):
    serve = commands.add_parser(
        "serve",
        help="a development server for an export",
        description="Serves the newest version of an export over TensorFlow Serving's REST and gRPC "
        "calls, with a page to ask from, and goes on to newer versions as they come. For development, "
        "not for production: run TensorFlow Serving there; clients need no change.",
    )
    serve.add_argument("export", metavar="DIR", help="folder of the export, or of its versions")
    serve.add_argument("--name", default="retrieval", help="of the model (default retrieval)")
    serve.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine only")
    serve.add_argument("--port", type=port, default=8500, help="of gRPC (default 8500)")
    serve.add_argument(
        "--rest-port", type=port, default=8501, help="of REST and of the page (default 8501)"
    )
    serve.set_defaults(run=_run_serve)


def _add_count(command, name, default, what):
    help = f"{what} (default {default})"
    command.add_argument(f"--{name}", type=positive_int, default=default, help=help)


def _add_bench(commands):
    bench = commands.add_parser(
        "bench",
        help="measure the index on this machine",
        description="Measures what the index is worth, in figures.",
    )
    subjects = bench.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    index = subjects.add_parser(
        "index",
        help="the index by itself: sampler, search, speed, upkeep",
        description="Measures the index on random clustered encodings, and the sampler and the search "
        "on real ones too where some are given: those of a model that is trained on TARGETS, TRAIN "
        "and TEST (files as for `tf-dynidx train`), or those of a file. Ctrl-C ends it early; what has "
        "been measured is printed and written.",
    )
    index.add_argument(
        "--parts",
        type=_parts(bench_index.PARTS),
        default=bench_index.DEFAULT_PARTS,
        metavar="PART,...",
        help=f"of {', '.join(bench_index.PARTS)} (default {','.join(bench_index.DEFAULT_PARTS)}); "
        "peers needs Faiss or ScaNN, large several GB of memory",
    )
    _add_data_files(index)
    index.add_argument(
        "--steps", type=positive_int, default=1000, help="in-batch training steps (default 1000)"
    )
    index.add_argument(
        "--encodings",
        metavar="FILE",
        help="NumPy archive (.npz) with the arrays targets and queries, instead of a model",
    )
    index.add_argument(
        "--max-rows",
        type=_enough_rows,
        default=1_000_000,
        metavar="N",
        help="random targets at most, but for the part large (default 1000000)",
    )
    index.add_argument(
        "--rows",
        type=_enough_rows,
        metavar="N",
        help="random targets of the part large (default 20000000)",
    )
    _add_seed_and_report(index)
    index.set_defaults(run=_run_bench_index)

    drift = subjects.add_parser(
        "drift",
        help="how true an index stays while an encoder trains, and what that costs",
        description="Trains a model (files as for `tf-dynidx train`) while indexes that are kept true "
        "in different ways follow it, and compares them with the true encodings; then times a refresh "
        "against encoding all targets anew, on random ones. Without files the latter alone. Ctrl-C "
        "ends it early; what has been measured is printed and written.",
    )
    _add_data_files(drift)
    drift.add_argument("--steps", type=positive_int, default=1000, help="training steps (default 1000)")
    drift.add_argument(
        "--max-rows",
        type=_enough_rows,
        default=1_000_000,
        metavar="N",
        help="random targets at most (default 1000000)",
    )
    _add_seed_and_report(drift)
    drift.set_defaults(run=_run_bench_drift)

    serve = subjects.add_parser(
        "serve",
        help="exports of each kind, and the development server under load",
        description="Serves an export to 32 clients while a new version is put in place, and counts "
        "errors and answers of each version; then compares exports, exact and tree, in throughput and "
        "recall, on random clustered encodings and, where a file is given, on real ones. Ctrl-C ends "
        "it early; what has been measured is printed and written.",
    )
    serve.add_argument(
        "--rows",
        type=_enough_rows,
        default=1_000_000,
        metavar="N",
        help="random targets (default 1000000)",
    )
    serve.add_argument(
        "--requests", type=positive_int, default=20_000, help="to the server (default 20000)"
    )
    serve.add_argument(
        "--encodings", metavar="FILE", help="NumPy archive (.npz) with the arrays targets and queries"
    )
    _add_seed_and_report(serve)
    serve.set_defaults(run=_run_bench_serve)

    memory = subjects.add_parser(
        "memory",
        help="the memory of a step with many negatives, encoded in chunks and all at once",
        description="Trains some steps of a model with a large tower on generated data, each query "
        "with negatives of its own, with encode_chunk and without, each in a process of its own, and "
        "compares their peaks of memory.",
    )
    for name, default, what in (
        ("batch", 8, "queries a step"),
        ("negatives", 1024, "negatives of each query"),
        ("chunk", 256, "candidates that are encoded together"),
        ("width", 2048, "width of the tower's hidden layers"),
        ("depth", 6, "number of the tower's hidden layers"),
    ):
        _add_count(memory, name, default, what)
    _add_seed_and_report(memory)
    memory.set_defaults(run=_run_bench_memory)

    placement = subjects.add_parser(
        "placement",
        help="what an accelerator must hold to train beside many targets",
        description="Trains small towers on generated data, with a negative cache over all targets and "
        "with the tree, its index and the corpus on the accelerator or on the host; compares what each "
        "holds where, and the recall. Without a GPU a second logical CPU stands in for it.",
    )
    for name, default, what in (
        ("rows", 1_000_000, "targets"),
        ("steps", 200, "steps of each training"),
        ("batch", 512, "queries a step"),
        ("dim", 64, "dimensions of an encoding"),
    ):
        _add_count(placement, name, default, what)
    _add_seed_and_report(placement)
    placement.set_defaults(run=_run_bench_placement)

    tfrs = subjects.add_parser(
        "tfrs",
        help="the task and the top-k layer beside those of TensorFlow Recommenders",
        description="Measures the metric of TensorFlow Recommenders through its own top-k layers and "
        "through the tree, on random clustered encodings; and, where files are given (as for "
        "`tf-dynidx train`), trains the same id towers with its task and with mined negatives for the "
        "same time. Keras 2 only: set TF_USE_LEGACY_KERAS=1. Ctrl-C ends it early; what has been "
        "measured is printed and written.",
    )
    tfrs.add_argument(
        "--parts",
        type=_parts(bench_tfrs.PARTS),
        metavar="PART,...",
        help=f"of {', '.join(bench_tfrs.PARTS)} (default evaluation, and training with files)",
    )
    tfrs.add_argument(
        "--sizes",
        type=_enough_rows,
        nargs="+",
        default=bench_tfrs.Settings.sizes,
        metavar="N",
        help="numbers of random candidates to evaluate on (default 100000 1000000)",
    )
    _add_data_files(tfrs)
    budget = tfrs.add_mutually_exclusive_group()
    budget.add_argument(
        "--seconds",
        type=positive_number,
        default=bench_tfrs.Settings.seconds,
        metavar="S",
        help="training time of each model, evaluation apart (default 120)",
    )
    budget.add_argument("--steps", type=positive_int, metavar="N", help="training steps instead")
    tfrs.add_argument(
        "--seeds",
        type=positive_int,
        default=bench_tfrs.Settings.seeds,
        metavar="N",
        help="models trained with each task, from --seed up (default 3)",
    )
    _add_seed_and_report(tfrs)
    tfrs.set_defaults(run=_run_bench_tfrs)
    _add_bench_methods(subjects)


def _add_data_files(bench):
    """The files of a model that a benchmark may train."""
    bench.add_argument("--targets", metavar="FILE", help="all targets")
    bench.add_argument("--train", metavar="FILE", help="training pairs")
    bench.add_argument("--test", metavar="FILE", help="test pairs, whose queries are measured with")


def _add_bench_methods(subjects):
    compared = subjects.add_parser(
        "methods",
        help="the miners compared on three sets, and the page that says what came out",
        description="Compares miners, as `tf-dynidx compare` does, on Open English WordNet and on "
        "Amazon CDs, which are not shipped (docs/methods.md says where they come from), and on the "
        "docstrings of the installed packages; takes hours, and writes a page. Stopped, it goes on "
        "where it was when the same command is run again.",
    )
    compared.add_argument(
        "--data", default="data", metavar="DIR", help="folder of the sets (default data)"
    )
    compared.add_argument(
        "--output",
        default="methods",
        metavar="DIR",
        help="folder for the comparisons (default methods)",
    )
    compared.add_argument(
        "--page", default="methods.md", metavar="FILE", help="the page, Markdown (default methods.md)"
    )
    compared.add_argument("--seeds", type=positive_int, default=3, metavar="N", help="default 3")
    compared.add_argument(
        "--only",
        type=_parts(bench_methods.names()),
        metavar="NAME,...",
        help=f"of {', '.join(bench_methods.names())} (default all)",
    )
    compared.set_defaults(run=_run_bench_methods)


def _add_seed_and_report(bench):
    bench.add_argument("--seed", type=seed, default=0, help="default 0")
    bench.add_argument("--report", metavar="FILE", help="write the figures here, as JSON")


# TensorFlow takes seconds to import; what needs it is imported when it is run, so that --help and
# a bad argument answer at once.


def _run_demo(options) -> int:
    import_tensorflow()
    from tf_dynidx.cli.demo import demo

    return demo(options.output, options.seconds, options.seed)


def _run_train(options) -> int:
    from tf_dynidx import files

    # What would be refused in the end is refused before any work.
    _check_report(options)
    if options.export:
        files.check_writable_target(options.export, "directory")
    targets, pairs, test = _read_data(options)
    settings = _settings(options, miner=options.miner)
    settings.check(len(targets.identifiers))

    import_tensorflow()
    from tf_dynidx.cli.training import train

    trained = train(targets, pairs, test, settings)
    report = trained.report
    if trained.interrupted:
        print("stopped early; what has been trained is kept", file=sys.stderr)
    print(f"{report['miner']}: {report['steps']} steps, {report['seconds']:.1f} s")
    for name, value in report["metrics"].items():
        print(f"  {name:<11} {value:.4f}")
    if options.report:
        files.write_json(options.report, report)
        print(f"report: {options.report}")
    if options.export:
        trained.export(options.export)
        print(f'export: {options.export}   ask it: tf-dynidx search {options.export} "a query"')
    return 0


def _run_compare(options) -> int:
    from tf_dynidx.cli.compare.comparison import compare
    from tf_dynidx.cli.compare.plan import Plan

    paths = {name: getattr(options, name) for name in ("targets", "train", "test")}
    for name, path in paths.items():
        # Each run reads the data; a pipe can be read once.
        if os.path.exists(path) and not os.path.isfile(path):
            raise DataError(
                f"--{name}: every run reads the data again, so that they must be in a file. "
                f"Received: {path!r}, which is none. Write them to a file first."
            )
    plan = Plan.of(
        paths,
        _read_data(options),
        options.miners,
        _settings(options),
        range(options.seed, options.seed + options.seeds),
    )
    return compare(plan, options.output)


def _read_data(options):
    """The files of `_add_training`, or of `_add_data_files`."""
    from tf_dynidx.cli.data import read_all

    return read_all(options.targets, options.train, options.test)


def _settings(options, **more):
    """The `Settings` that `_add_training` asked for."""
    names = ("encoder", *BUDGETS, "batch", "negatives", "mining_queries", "warmup_examples", "reads")
    names += ("sharing", "dim", "temperature", "unlabelled_weight", "seed")
    return Settings(**{name: getattr(options, name) for name in names}, **more)


def _run_search(options) -> int:
    import_tensorflow()
    from tf_dynidx.cli.search import print_results, search

    print_results(options.query, search(options.export, options.query, options.k))
    return 0


def _run_export(options) -> int:
    import_tensorflow()
    from tf_dynidx.cli.export import export

    names = ("added", "updated", "removed", "output", "k", "index", "row_dtype", "budget")
    path = export(options.export, **{name: getattr(options, name) for name in names})
    print(f'export: {path}   ask it: tf-dynidx search {path} "a query"')
    return 0


def _run_serve(options) -> int:
    import_tensorflow()
    from tf_dynidx.cli.serve import serve

    return serve(options.export, options.name, options.host, options.port, options.rest_port)


def _run_bench_index(options) -> int:
    names = ("parts", "targets", "train", "test", "encodings", "steps", "max_rows", "rows", "seed")
    settings = bench_index.Settings(**{name: getattr(options, name) for name in (*names, "report")})
    inputs = bench_index.read_inputs(settings)
    import_tensorflow()
    return bench_index.bench_index(settings, inputs)


def _run_bench_drift(options) -> int:
    from tf_dynidx.cli.data import all_or_none

    _check_report(options)
    data = _read_data(options) if all_or_none(options) else None
    import_tensorflow()
    from tf_dynidx.cli.bench import drift

    names = ("steps", "max_rows", "seed", "report")
    settings = drift.Settings(**{name: getattr(options, name) for name in names})
    return drift.bench_drift(settings, data)


def _run_bench_serve(options) -> int:
    from tf_dynidx.cli import encodings

    _check_report(options)
    real = encodings.read(options.encodings) if options.encodings else None
    import_tensorflow()
    from tf_dynidx.cli.bench import serve

    names = ("rows", "requests", "encodings", "seed", "report")
    settings = serve.Settings(**{name: getattr(options, name) for name in names})
    return serve.bench_serve(settings, real)


def _run_bench_memory(options) -> int:
    _check_report(options)
    import_tensorflow()
    from tf_dynidx.cli.bench import memory

    names = ("batch", "negatives", "chunk", "width", "depth", "seed", "report")
    settings = memory.Settings(**{name: getattr(options, name) for name in names})
    return memory.bench_memory(settings)


def _run_bench_placement(options) -> int:
    _check_report(options)
    import_tensorflow()
    from tf_dynidx.cli.bench import placement

    names = ("rows", "steps", "batch", "dim", "seed", "report")
    settings = placement.Settings(**{name: getattr(options, name) for name in names})
    return placement.bench_placement(settings)


def _run_bench_tfrs(options) -> int:
    names = ("parts", "targets", "train", "test", "seconds", "steps", "seeds", "seed", "report")
    settings = bench_tfrs.check(
        bench_tfrs.Settings(
            sizes=tuple(options.sizes), **{name: getattr(options, name) for name in names}
        )
    )
    import_tensorflow()
    return bench_tfrs.bench_tfrs(settings)


def _run_bench_methods(options) -> int:
    names = [field.name for field in dataclasses.fields(bench_methods.Options)]
    return bench_methods.bench_methods(
        bench_methods.Options(**{name: getattr(options, name) for name in names})
    )


def _check_report(options):
    """Refuses, before anything is measured, a report that could not be written."""
    from tf_dynidx import files

    if options.report:
        files.check_writable_target(options.report, "file")


def _parts(known):
    """A function from text to the parts of a benchmark that it names, of those known."""

    def read(text: str) -> tuple[str, ...]:
        parts = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
        unknown = [part for part in parts if part not in known]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"must be of {', '.join(known)}, joined by commas. Received: {text!r}"
            )
        return parts

    return read


def _enough_rows(text: str) -> int:
    value = positive_int(text)
    if not _FEWEST_ROWS <= value <= 2**30:
        raise argparse.ArgumentTypeError(
            f"must be a whole number from {_FEWEST_ROWS} to {2**30}. Received: {text}"
        )
    return value


if __name__ == "__main__":
    sys.exit(main())
