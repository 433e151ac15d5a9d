"""A comparison with real processes: stopped in the middle, gone on with, and a run that fails alone."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.test_training import NAMES, TARGETS, TEST, TRAIN
from tf_dynidx.cli.compare import methods, process
from tf_dynidx.cli.compare.plan import Plan
from tf_dynidx.cli.settings import Settings


@pytest.fixture
def paths(tmp_path):
    """The data of the tests of `train` as files."""
    lines = {
        "targets": [{"id": n, "text": t} for n, t in zip(NAMES, TARGETS.texts, strict=True)],
        "train": list(pairs(TRAIN)),
        "test": list(pairs(TEST)),
    }
    found = {}
    for name, records in lines.items():
        found[name] = str(tmp_path / f"{name}.jsonl")
        with open(found[name], "w") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    return found


def pairs(data):
    for query, rows in zip(data.queries, data.positives, strict=True):
        yield {"query": query, "targets": [NAMES[row] for row in rows]}


def test_stopped_comparison_goes_on_where_it_was(paths, tmp_path):
    output, log = tmp_path / "out", tmp_path / "log"
    files = [word for name in paths for word in (f"--{name}", paths[name])]
    options = ["--miners", "in-batch,uniform", "--seeds", "1", "--steps", "120"]
    options += ["--batch", "16", "--dim", "8"]
    module = [sys.executable, "-m", "tf_dynidx.cli.main", "compare", "--output", str(output)]
    command = [*module, *files, *options]

    state = output / "runs" / "in-batch_seed=0.checkpoint" / "state.json"
    with open(log, "w") as file:
        stopped = subprocess.Popen(command, stdout=file, stderr=file)
        deadline = time.monotonic() + 300
        while not state.exists():
            assert stopped.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        os.kill(stopped.pid, signal.SIGTERM)
        assert stopped.wait(120) == 130, log.read_text()
    assert "The same command goes on from there" in log.read_text()
    first = json.loads(state.read_text())["state"]["history"][0]
    assert not list((output / "runs").glob("*.json"))

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "run 1 of 2: in-batch, seed 0, going on" in done.stderr
    report = json.loads((output / "report.json").read_text())
    resumed, other = report["runs"]
    assert resumed["history"][0] == first
    assert (resumed["method"], other["method"]) == ("in-batch", "uniform")
    for run, calls in ((resumed, 16), (other, 48)):
        assert run["steps"] == 120 and run["encoder_calls"] == 120 * calls
        assert len(run["history"]) == 10
        # Forty-two targets: ten picked at random would hold the right one for 24 % of the queries.
        assert run["metrics"]["recall@10"] > 0.8
        assert run["memory"]["process_peak"] > 100_000_000 > run["memory"]["miner"] > 0
    assert re.search(r"^in-batch +\d\.\d+", done.stdout, re.MULTILINE)
    assert not list((output / "runs").glob("*.checkpoint"))


# What ends a run and not the comparison.


def run_one(paths, tmp_path, changes=None):
    plan = Plan.of(paths, (TARGETS, TRAIN, TEST), methods.read("in-batch"), Settings(steps=1), [0])
    if changes:
        changes()
    return process.run_in_process(plan, plan.runs()[0], tmp_path / "checkpoint")


def test_a_run_says_why_it_failed(paths, tmp_path):
    found = run_one(paths, tmp_path, lambda: os.remove(paths["test"]))
    assert re.fullmatch(r"DataError: .*test.jsonl: there is no such file\. .*", found["error"])


def test_data_that_changed_under_way_are_refused(paths, tmp_path):
    def change():
        with open(paths["train"], "a") as file:
            file.write(json.dumps({"query": "one more", "target": NAMES[0]}) + "\n")

    found = run_one(paths, tmp_path, change)
    assert "train.jsonl: the data have changed since the comparison began" in found["error"]


@pytest.fixture
def dying(tmp_path, monkeypatch):
    """A function that has the process of a run do nothing but end."""

    def make(end):
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{end}\n")
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))

    return make


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("kill -KILL $$", "was ended by SIGKILL, as a system does that is out of memory"),
        ("kill -SEGV $$", "was ended by SIGSEGV"),
        ("exit 3", "ended with status 3"),
    ],
)
def test_a_process_that_dies_leaves_a_reason(paths, tmp_path, dying, end, message):
    dying(end)
    assert run_one(paths, tmp_path) == {"error": f"the process {message}"}


def test_a_process_that_was_stopped_stops_the_comparison(paths, tmp_path, dying):
    dying("exit 130")
    with pytest.raises(KeyboardInterrupt):
        run_one(paths, tmp_path)
