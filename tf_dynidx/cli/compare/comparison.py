"""The comparison: run after run, then the table, the plot and the page."""

import json
import shutil
import sys
from pathlib import Path

from tf_dynidx import files
from tf_dynidx.cli.compare.plan import environment
from tf_dynidx.cli.compare.process import run_in_process
from tf_dynidx.cli.compare.summary import summary
from tf_dynidx.cli.start import stopped_once


def compare(plan, output, run_one=run_in_process) -> int:
    """Runs a comparison, or what is left of it.

    Args:
        plan: `Plan`.
        output: folder, made if it is not there; one of the same plan is gone on with.
        run_one: function from the plan, a `Run` and a folder for its checkpoint to what came of it:
            the report of `train`, or a dict with "error". A run that has failed is tried again when
            the comparison is gone on with.

    Returns:
        int, the exit status: 1 if any run has failed.

    Raises:
        ValueError: the folder is that of another comparison.
        KeyboardInterrupt: it was stopped; what has been done is kept.
    """
    folder = Path(output)
    plan.claim(folder)
    with stopped_once():
        outcomes = _run_all(plan, folder, run_one)
    # Imported late: a plot needs much that a comparison that is stopped does not.
    from tf_dynidx.cli.compare.page import page
    from tf_dynidx.cli.compare.plot import plot
    from tf_dynidx.cli.compare.text import text

    used = sorted({run.get("accelerator") or "none" for run in outcomes if "error" not in run})
    found = summary(plan, outcomes) | {"environment": environment() | {"accelerator": ", ".join(used)}}
    files.write_json(folder / "report.json", found)
    image = plot(found)
    files.write_bytes(folder / "plot.png", image)
    files.write_bytes(folder / "report.html", page(found, image).encode())
    print(f"\n{text(found)}\n")
    print(f"page: {folder / 'report.html'}   figures: {folder / 'report.json'}")
    return 1 if any("error" in outcome for outcome in outcomes) else 0


def _run_all(plan, folder, run_one):
    """The outcomes of all runs, in the order of the plan, from their files where they are done."""
    runs, outcomes = plan.runs(), []
    for number, run in enumerate(runs, start=1):
        file = folder / "runs" / f"{run.name}.json"
        checkpoint = folder / "runs" / f"{run.name}.checkpoint"
        title = f"run {number} of {len(runs)}: {run.method.label}, seed {run.settings.seed}"
        outcome = _done(file)
        if outcome is None:
            going_on = ", going on" if checkpoint.exists() else ""
            print(f"{title}{going_on}", file=sys.stderr, flush=True)
            try:
                outcome = run_one(plan, run, checkpoint)
            except KeyboardInterrupt:
                print(
                    f"\nStopped in {title}. The same command goes on from there.",
                    file=sys.stderr,
                    flush=True,
                )
                raise
            files.write_json(file, outcome)
            if "error" in outcome:
                print(f"  failed: {outcome['error']}", file=sys.stderr, flush=True)
            else:
                shutil.rmtree(checkpoint, ignore_errors=True)
        else:
            print(f"{title}, done before", file=sys.stderr, flush=True)
        outcomes.append(outcome)
    return outcomes


def _done(file):
    """What came of a run that needs not be run again, or None."""
    if not file.exists():
        return None
    outcome = json.loads(file.read_text(encoding="utf-8"))
    return None if "error" in outcome else outcome
