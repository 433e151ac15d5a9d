"""The comparison around the runs: what is run, kept, refused, and made of what came out."""

import argparse
import dataclasses
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tf_dynidx.cli.compare import methods
from tf_dynidx.cli.compare.comparison import compare
from tf_dynidx.cli.compare.plan import Plan
from tf_dynidx.cli.data import Pairs, Targets
from tf_dynidx.cli.main import main
from tf_dynidx.cli.settings import Settings

METRICS = ("recall@1", "recall@10", "recall@20", "recall@64", "recall@100", "ndcg@20", "mrr")
TARGETS = Targets(["a", "b", "c"], ["one", "two", "three"])
PAIRS = Pairs(["first", "second"], [np.array([0], np.int32), np.array([1, 2], np.int32)])
PATHS = {"targets": "t.jsonl", "train": "p.jsonl", "test": "q & <r>.jsonl"}


def plan(
    miners="tree,in-batch:batch=1024,exact", seeds=(5, 6), data=(TARGETS, PAIRS, PAIRS), **changes
):
    settings = Settings(**{"steps": 10, **changes})
    return Plan.of(PATHS, data, methods.read(miners), settings, seeds)


def report(method, seed, gpu=None):
    """What `train` might report: figures that tell miner and seed."""
    level = {"tree": 0.4, "in-batch": 0.2, "exact": 0.5}[method.split(":")[0]] + seed / 100
    metrics = dict.fromkeys(METRICS, level)
    history = [
        {"step": s, "seconds": s * level, "encoder_calls": s * 1536, "metrics": metrics}
        for s in (5, 10)
    ]
    return {
        "miner": method,
        "steps": 10,
        "seconds": 10 * level,
        "seconds_mining": 5 * level,
        "encoder_calls": 15360,
        "num_targets": 3,
        "metrics": metrics,
        "history": history,
        "full_encodes": 1,
        "memory": {"process_peak": 2_000_000_000 + seed, "miner": 1_234_567, "accelerator_peak": gpu},
        "accelerator": gpu and "NVIDIA H200",
    }


class Runs:
    """Stands in for the processes: hands out reports, and remembers what was asked for."""

    def __init__(self, act=None):
        self.asked, self.act = [], act

    def __call__(self, plan, run, checkpoint):
        self.asked.append((run.method.label, run.settings.seed))
        found = self.act(*self.asked[-1], checkpoint) if self.act else None
        return found or report(run.method.label, run.settings.seed)


ALL = [(label, seed) for seed in (5, 6) for label in ("tree", "in-batch:batch=1024", "exact")]


# Methods.


def test_methods_take_settings_of_their_own():
    tree, batch = methods.read("tree:sharing=none:negatives=32,in-batch:learning_rate=1e-2:batch=8")
    assert (tree.label, batch.label) == (
        "tree:negatives=32:sharing=none",
        "in-batch:batch=8:learning_rate=0.01",
    )
    common = Settings(seconds=3.0, dim=16, batch=64, seed=1)
    assert tree.settings(common, 7) == dataclasses.replace(
        common, miner="tree", sharing="none", negatives=32, seed=7
    )
    assert batch.settings(common, 7) == dataclasses.replace(
        common, miner="in-batch", batch=8, learning_rate=0.01, seed=7
    )
    # What a query reads, of the tree alone.
    (reading,) = methods.read("tree:reads=700")
    assert reading.settings(common, 7) == dataclasses.replace(common, reads=700, seed=7)
    for method, reads in ((tree, 300), (batch, None)):
        assert method.settings(dataclasses.replace(common, reads=300), 7).reads == reads
    # Own negatives, and a warm-up for them, are asked for of those that have any.
    assert batch.settings(dataclasses.replace(common, sharing="none"), 7).sharing == "batch"
    assert batch.settings(dataclasses.replace(common, warmup_examples=9), 7).warmup_examples == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "a miner must be one of tree, in-batch, .*Received: 'magic'"),
        ("tree,", "Received: ''"),
        ("tree:dim=4", "own settings are batch, .*the same for all. Received: 'dim=4' for tree"),
        ("tree:batch", "Received: 'batch' for tree"),
        ("tree:batch=0", "batch of tree must be a whole number of at least 1. Received: 0"),
        ("tree:sharing=some", "sharing of tree must be one of batch, none. Received: some"),
        ("tree:batch=1:batch=2", "batch is given twice"),
        ("exact:reads=4", "only the tree .*Received: 'reads=4' for exact"),
        ("tree:warmup_examples=-1", "warmup_examples of tree must be .* of at least 0. Received: -1"),
        ("in-batch:negatives=4", "in-batch mines no negatives. Received: 'negatives=4'"),
        ("tree:batch=8,exact,tree:batch=8", "tree:batch=8 is named twice"),
    ],
)
def test_unknown_methods_and_settings_are_refused(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        methods.read(text)


def test_bad_options_end_with_status_2(capsys):
    files = ["--targets", "t", "--train", "p", "--test", "q"]
    for more in (
        ["--miners", "tree:dim=4"],
        [],
        ["--miners", "tree", "--steps", "1", "--encoder-calls", "9"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *files, *more])
        assert stop.value.code == 2
    assert "not allowed with argument --steps" in capsys.readouterr().err


def test_a_pipe_is_refused_that_every_run_would_read(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    files = ["--targets", str(tmp_path / "pipe"), "--train", "p", "--test", "q"]
    assert main(["compare", *files, "--miners", "tree"]) == 1
    assert "pipe', which is none" in capsys.readouterr().err


# Runs.


def test_every_method_is_run_with_every_seed_once(tmp_path, capsys):
    runs = Runs()
    assert compare(plan(), tmp_path / "out", runs) == 0
    assert runs.asked == ALL
    printed = capsys.readouterr()
    assert "run 6 of 6: exact, seed 6" in printed.err
    assert str(tmp_path / "out" / "report.html") in printed.out
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"comparison.json", "report.json", "report.html", "plot.png", "runs"}
    again = Runs()
    assert compare(plan(), tmp_path / "out", again) == 0
    assert again.asked == []
    assert capsys.readouterr().out == printed.out


def test_a_run_that_fails_ends_no_other_and_is_tried_again(tmp_path, capsys):
    def fail(label, seed, checkpoint):
        return {"error": "MemoryError: 7 GB"} if (label, seed) == ("tree", 6) else None

    runs = Runs(fail)
    assert compare(plan(), tmp_path, runs) == 1
    assert runs.asked == ALL
    failure = "failed: tree, seed 6: MemoryError: 7 GB"
    assert failure in capsys.readouterr().out
    assert failure in (tmp_path / "report.html").read_text()
    tree = json.loads((tmp_path / "report.json").read_text())["methods"][0]
    assert tree["num_runs"] == 1 and tree["metrics"]["mrr"] == {"mean": 0.45, "spread": None}
    again = Runs()
    assert compare(plan(), tmp_path, again) == 0
    assert again.asked == [("tree", 6)]


def test_methods_that_all_fail_leave_a_table_all_the_same(tmp_path, capsys):
    assert compare(plan(), tmp_path, Runs(lambda *run: {"error": "too large"})) == 1
    printed = capsys.readouterr().out
    assert re.search(r"^tree +–( +–)+$", printed, re.MULTILINE)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_stopped_comparison_goes_on_with_the_run_it_was_at(tmp_path, capsys):
    def stop(label, seed, checkpoint):
        if (label, seed) == ("exact", 5):
            checkpoint.mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(plan(), tmp_path, Runs(stop))
    assert "The same command goes on from there" in capsys.readouterr().err
    checkpoints = []
    again = Runs(lambda label, seed, checkpoint: checkpoints.append(checkpoint.exists()))
    assert compare(plan(), tmp_path, again) == 0
    assert again.asked == ALL[2:]
    assert checkpoints == [True, False, False, False]
    assert "exact, seed 5, going on" in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*.checkpoint"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"miners": "tree,exact"}, "miners: tree,in-batch:batch=1024,exact there, tree,exact here"),
        ({"seeds": (5,)}, "seeds: 5,6 there, 5 here"),
        ({"dim": 32}, "settings dim: 64 there, 32 here"),
        ({"data": (TARGETS, Pairs(["first", "other"], PAIRS.positives), PAIRS)}, "data train: "),
        ({"data": (Targets(["a", "b", "c"], ["one", "two", "3"]), PAIRS, PAIRS)}, "data targets: "),
        ({"data": (TARGETS, PAIRS, Pairs(PAIRS.queries, PAIRS.positives[::-1]))}, "data test: "),
    ],
)
def test_other_arguments_and_other_data_are_refused(tmp_path, changes, message):
    assert compare(plan(), tmp_path, Runs()) == 0
    runs = Runs()
    with pytest.raises(ValueError, match=message) as refused:
        compare(plan(**changes), tmp_path, runs)
    assert "another folder" in str(refused.value) and str(refused.value).count(" there, ") == 1
    assert runs.asked == []


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="not empty"):
        compare(plan(), tmp_path, Runs())


def test_a_method_that_the_data_are_too_few_for_is_refused():
    with pytest.raises(ValueError, match="3 targets, 4 negatives for tree"):
        plan("exact,tree:negatives=4")


# Figures.


def test_means_spreads_and_the_gain_that_is_closed(tmp_path, capsys):
    compare(plan(seeds=(0, 3, 4)), tmp_path, Runs())
    found = json.loads((tmp_path / "report.json").read_text())
    for row, level in zip(found["methods"], (0.4, 0.2, 0.5), strict=True):
        expected = level + np.array([0.0, 0.03, 0.04])
        assert row["metrics"]["recall@64"]["mean"] == pytest.approx(expected.mean())
        assert row["metrics"]["recall@64"]["spread"] == pytest.approx(expected.std(ddof=1))
        assert row["seconds"]["mean"] == pytest.approx(10 * expected.mean())
        assert row["share_mining"] == {"mean": pytest.approx(0.5), "spread": pytest.approx(0)}
        assert row["memory"] == {
            "process_peak": 2_000_000_004,
            "miner": 1_234_567,
            "accelerator_peak": None,
        }
    for row, closed in zip(found["methods"], (2 / 3, 0.0, 1.0), strict=True):
        assert row["closed"] == {
            name: pytest.approx(closed) for name in ("recall@10", "recall@64", "mrr")
        }
    assert len(found["runs"]) == 9 and found["runs"][3]["seed"] == 3
    printed = capsys.readouterr().out
    assert re.search(r"^tree( +0\.423 ±0\.021){7}$", printed, re.MULTILINE)
    assert re.search(
        r"^exact +10 +5\.2 ±0\.2 +50% +15,360 +1 +2 GB +1\.23 MB +–$", printed, re.MULTILINE
    )
    assert re.search(r"^tree( +0\.67){3}$", printed, re.MULTILINE)


def test_no_oracle_no_share_of_its_gain(tmp_path, capsys):
    compare(plan("tree,in-batch", seeds=(0,)), tmp_path, Runs())
    found = json.loads((tmp_path / "report.json").read_text())
    assert [row["closed"] for row in found["methods"]] == [None, None]
    printed = capsys.readouterr().out
    assert "of the gain" not in printed and "one seed" in printed and "±" not in printed


@pytest.mark.parametrize("budget", ["seconds", "encoder_calls"])
def test_no_share_of_the_gain_of_an_oracle_that_pays_for_looking_at_all(tmp_path, budget):
    compare(plan(seeds=(0,), steps=None, **{budget: 9}), tmp_path, Runs())
    methods = json.loads((tmp_path / "report.json").read_text())["methods"]
    assert [row["closed"] for row in methods] == [None, None, None]


def test_an_oracle_that_gains_nothing_gives_no_share(tmp_path):
    def same(label, seed, checkpoint):
        return report("exact", seed)

    compare(plan(seeds=(0,)), tmp_path, Runs(same))
    tree = json.loads((tmp_path / "report.json").read_text())["methods"][0]
    assert tree["closed"] == {"recall@10": None, "recall@64": None, "mrr": None}


class Checker(HTMLParser):
    """Refuses tags that are not closed in turn; collects what is loaded and what is said."""

    def __init__(self):
        super().__init__()
        self.open, self.loaded, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_page_is_whole_and_loads_nothing(tmp_path):
    gpu = Runs(lambda label, seed, checkpoint: report(label, seed, gpu=3_500_000))
    compare(plan(), tmp_path, gpu)
    source = (tmp_path / "report.html").read_text()
    page = Checker()
    page.feed(source)
    page.close()
    assert page.open == []
    assert len(page.loaded) == 1 and page.loaded[0].startswith("data:image/png;base64,")
    assert not re.search(r"https?:|//|url\(|@import", re.sub(r"base64,[^\"]*", "", source))
    for said in (
        "accelerator NVIDIA H200",
        "in-batch:batch=1024",
        "q & <r>.jsonl",
        "3 targets",
        "10 steps",
        "3.5 MB",
        "0.455 ±0.007",
    ):
        assert said in page.text
