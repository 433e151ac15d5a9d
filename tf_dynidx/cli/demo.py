"""The demo: a search over the code that is installed, trained twice, compared, exported and asked."""

import dataclasses
import os
from pathlib import Path

from tf_dynidx import files
from tf_dynidx.cli.docstrings import load_docstring_corpus
from tf_dynidx.cli.search import print_results, search
from tf_dynidx.cli.tables import aligned
from tf_dynidx.cli.training import Settings, train

_QUESTIONS = [
    "solve a linear system of equations",
    "parse command line arguments",
    "two-dimensional convolution layer",
    "read a compressed file",
    "probability density of the normal distribution",
]
# Each method at the batch size that suits it: in-batch training lives off large batches; mined
# negatives are shared by the batch, and smaller ones give more steps. The pairs are few enough for
# both to overfit, hence the dropout, and the held-out pairs that pick the weights. No target that is
# asked for in the end has a label in training: to have none says nothing against it, hence the weight.
_RUNS = [
    Settings(miner="in-batch", batch=1024, dropout=0.1),
    Settings(miner="tree", batch=512, negatives=2, unlabelled_weight=0.0, dropout=0.1),
]


def demo(output: str, seconds: float, seed: int) -> int:
    """Runs the demo; returns the exit status.

    Args:
        output: folder for the plot, the reports and the export.
        seconds: training time of each of the two runs.
        seed: seeds both.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    export = folder / "export"
    files.check_writable_target(export, "directory", replace=True)
    print("Reading the docstrings of the installed packages ...")
    corpus = load_docstring_corpus(progress=True)
    print(
        f"{len(corpus.targets.identifiers):,} functions and classes; "
        f"{len(corpus.train.queries):,} training queries, {len(corpus.held_out.queries):,} held out, "
        f"{len(corpus.test.queries):,} test queries"
    )
    runs = []
    for settings in _RUNS:
        settings = dataclasses.replace(settings, seconds=seconds, seed=seed)
        run = train(corpus.targets, corpus.train, corpus.test, settings, corpus.held_out)
        runs.append(run)
        files.write_json(folder / f"{settings.miner}.json", run.report)
        if run.interrupted:
            print("Stopped; going on with what has been trained.")
            break

    print()
    _print_table(runs)
    plot = folder / "recall.png"
    _plot(runs, plot)
    print(f"plot: {plot}")

    best = max(runs, key=lambda run: run.held_out["mrr"] if run.held_out else -1.0)
    best.export(export)
    print(f"export: {export}, of {best.report['miner']}, the better one on the held-out queries\n")
    print_results(_QUESTIONS, search(export, _QUESTIONS, k=3))
    print(f'\nAsk your own:\n  {_command()} search {export} "what the function should do"')
    return 0


def _print_table(runs):
    columns = ["recall@1", "recall@10", "recall@64", "mrr"]
    heads = [*columns, "steps", "seconds", "mining", "full encodes"]
    rows = [["miner", *heads]]
    for run in runs:
        report = run.report
        share = report["seconds_mining"] / report["seconds"] if report["seconds"] else 0.0
        rows.append(
            [
                report["miner"],
                *(f"{report['metrics'][name]:.3f}" for name in columns),
                f"{report['steps']:,}",
                f"{report['seconds']:.0f}",
                f"{share:.0%}",
                str(report["full_encodes"]),
            ]
        )
    print(aligned(rows, [True] * len(rows[0])))


def _plot(runs, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for axis, name in zip(axes, ("recall@10", "mrr"), strict=True):
        for run in runs:
            history = run.report["history"]
            axis.plot(
                [point["seconds"] for point in history],
                [point["metrics"][name] for point in history],
                marker="o",
                label=run.report["miner"],
            )
        axis.set(xlabel="seconds of training", ylabel=name, ylim=(0, None), xlim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(
        "Test queries against all targets; the last point: weights picked on held-out queries"
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _command():
    """How this user can call the command line: by its path if it is not on the PATH."""
    import shutil
    import sys

    if shutil.which("tf-dynidx"):
        return "tf-dynidx"
    return os.path.relpath(Path(sys.executable).parent / "tf-dynidx")
