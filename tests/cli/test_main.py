"""The command line as a user runs it: train, search, what is refused, what Ctrl-C leaves."""

import gzip
import json
import re
import signal
import subprocess
import sys
import time

import pytest

from tf_dynidx import miners
from tf_dynidx.cli.main import main
from tf_dynidx.cli.settings import MINERS

WORDS = ["red", "green", "blue", "small", "large", "round", "square", "soft", "hard", "warm"]
METRICS = {
    "recall@1",
    "recall@10",
    "recall@20",
    "recall@64",
    "recall@100",
    "ndcg@20",
    "mrr",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Things of two words each, asked for by their words in reverse; one file gzipped."""
    folder = tmp_path_factory.mktemp("data")
    targets = [{"id": f"{a}-{b}", "text": f"{a} {b} thing"} for a in WORDS for b in WORDS if a != b]
    pairs = [
        {"query": f"one {target['id'].replace('-', ' ')} {word}", "target": target["id"]}
        for target in targets
        for word in ("please", "now", "here")
    ]
    test = [
        {"query": f"a {target['id'].replace('-', ' ')}", "target": target["id"]} for target in targets
    ]
    write(folder / "targets.jsonl", targets)
    with gzip.open(folder / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in pairs)
    write(folder / "test.jsonl", test)
    return folder


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def arguments(folder, *more):
    return [
        "train",
        *("--targets", str(folder / "targets.jsonl")),
        *("--train", str(folder / "train.jsonl.gz")),
        *("--test", str(folder / "test.jsonl")),
        *("--batch", "32", "--dim", "16"),
        *more,
    ]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The report of a training with the defaults, and its export."""
    folder = tmp_path_factory.mktemp("trained")
    more = ["--report", str(folder / "report.json"), "--export", str(folder / "export")]
    assert main(arguments(data, "--steps", "60", *more)) == 0
    return json.loads((folder / "report.json").read_text()), folder / "export"


def test_trains_reports_exports_and_answers(trained, capsys):
    report, export = trained
    assert set(report) == {
        "miner",
        "steps",
        "seconds",
        "seconds_mining",
        "num_targets",
        "metrics",
        "history",
        "full_encodes",
        "encoder_calls",
        "memory",
        "accelerator",
    }
    assert report["miner"] == "tree"
    assert report["steps"] == 60
    assert report["num_targets"] == 90
    assert report["full_encodes"] == 1
    # A positive and two negatives a query; and each target once, for the index.
    assert report["encoder_calls"] >= 60 * 32 * 3 + 90
    assert report["memory"]["process_peak"] > report["memory"]["miner"] > 90 * 16 * 4
    assert 0 < report["seconds_mining"] <= report["seconds"]
    assert set(report["metrics"]) == METRICS
    # Ninety targets: ten picked at random would hold the right one for 11 % of the queries.
    assert report["metrics"]["recall@10"] > 0.8
    steps = [point["step"] for point in report["history"]]
    assert steps == sorted(steps) and steps[-1] == 60
    assert all(set(point["metrics"]) == METRICS for point in report["history"])
    assert all(
        set(point) == {"step", "seconds", "encoder_calls", "metrics"} for point in report["history"]
    )
    assert report["history"][-1]["metrics"] == report["metrics"]

    capsys.readouterr()
    assert main(["search", str(export), "one red round thing", "-k", "5"]) == 0
    answer = capsys.readouterr().out
    assert len(re.findall(r"^ +[1-5]  -?\d\.\d+  \w+-\w+$", answer, re.MULTILINE)) == 5
    assert "red-round" in answer or "round-red" in answer


def test_ids_leave_training_positives_out_of_the_ranking(tmp_path):
    """Each user has bought all but one item of a group; the one left is what is to be found."""
    groups, size = 6, 8
    items = [f"g{g}i{i}" for g in range(groups) for i in range(size)]
    train, test = [], []
    for group in range(groups):
        for left in range(size):
            own = [f"g{group}i{i}" for i in range(size)]
            user = f"user{group}-{left}"
            test.append({"query": user, "target": own.pop(left)})
            train.append({"query": user, "targets": own})
    write(tmp_path / "targets.jsonl", [{"id": item, "text": ""} for item in items])
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in train)
    write(tmp_path / "test.jsonl", test)
    report_file = tmp_path / "report.json"
    more = ["--encoder", "id", "--miner", "in-batch", "--steps", "600", "--report", str(report_file)]
    assert main(arguments(tmp_path, *more)) == 0
    report = json.loads(report_file.read_text())
    # Were the seven bought items ranked too, they would come first and none would be found at rank 1.
    assert report["metrics"]["recall@1"] > 0.9
    assert report["full_encodes"] == 0
    assert report["seconds_mining"] == 0


def test_seconds_bound_the_training(data, tmp_path):
    report_file = tmp_path / "report.json"
    more = ["--seconds", "8", "--miner", "in-batch", "--report", str(report_file)]
    assert main(arguments(data, *more)) == 0
    report = json.loads(report_file.read_text())
    assert report["seconds"] >= 8
    # One step goes past the end at most; whatever was measured on the way lies before it.
    assert all(point["seconds"] < 8 for point in report["history"][:-1])


def test_same_seed_same_figures(data, trained, untimed, tmp_path):
    file = tmp_path / "report.json"
    assert main(arguments(data, "--steps", "60", "--report", str(file))) == 0
    assert json.loads(file.read_text())["metrics"] == trained[0]["metrics"]


def test_ctrl_c_keeps_what_has_been_trained(data, tmp_path):
    report, export = tmp_path / "report.json", tmp_path / "export"
    command = arguments(
        data,
        "--steps",
        "1000000",
        "--miner",
        "in-batch",
        "--report",
        str(report),
        "--export",
        str(export),
    )
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tf_dynidx.cli.main", *command],
            stdout=log,
            stderr=log,
            # A shell that runs the tests in the background has its children ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 120
        while not re.search(rb"[1-9]\d\d+/1000000", (tmp_path / "log").read_bytes()):
            assert process.poll() is None and time.monotonic() < deadline, (
                tmp_path / "log"
            ).read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0, (tmp_path / "log").read_text()
    assert 0 < json.loads(report.read_text())["steps"] < 1_000_000
    assert "stopped early" in (tmp_path / "log").read_text()
    assert (export / "saved_model.pb").exists()


def test_help_answers_without_tensorflow():
    code = (
        "import sys\nfrom tf_dynidx.cli.main import main\n"
        "try: main(['train', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--negatives" in done.stdout


def test_every_miner_can_be_asked_for(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    (choices,) = {*re.findall(r"--miner \{(.*?)\}", capsys.readouterr().out)}
    assert choices.split(",") == [*MINERS]
    for name, kind in MINERS.items():
        kind = getattr(miners, kind)
        assert kind(seed=3).seed == 3
        assert name == "in-batch" or kind(num_negatives=5).num_negatives == 5


def replaced(folder, tmp_path, name, text):
    """The data with one file's text replaced."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("targets.jsonl", "", "no targets"),
        ("targets.jsonl", '{"id": "a", "text": "b"}\n{"id": "a", "text": "c"}\n', "line 2"),
        ("test.jsonl", "not json\n", "line 1"),
        ("test.jsonl", '{"query": "a", "target": "no such thing"}\n', "no such thing"),
        ("targets.jsonl", '{"id": "red-green", "text": "x"}\n', "Received"),
    ],
)
def test_bad_data_is_refused_and_nothing_written(data, tmp_path, capsys, name, text, message):
    folder = replaced(data, tmp_path, name, text)
    report, export = tmp_path / "report.json", tmp_path / "export"
    more = ["--steps", "2", "--report", str(report), "--export", str(export)]
    assert main(arguments(folder, *more)) == 1
    complaint = capsys.readouterr().err
    assert message in complaint
    assert "Received" in complaint
    assert not report.exists() and not export.exists()


def test_missing_file_is_refused(data, tmp_path, capsys):
    command = arguments(data)
    command[command.index("--test") + 1] = str(tmp_path / "absent.jsonl")
    assert main(command) == 1
    assert "absent.jsonl" in capsys.readouterr().err


def test_more_negatives_than_targets_is_refused(data, capsys):
    assert main(arguments(data, "--negatives", "91")) == 1
    complaint = capsys.readouterr().err
    assert "fewer targets than negatives" in complaint and "91" in complaint


def test_own_negatives_without_negatives_are_refused(data, capsys):
    assert main(arguments(data, "--miner", "in-batch", "--sharing", "none")) == 1
    assert "Received: sharing=none for in-batch" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused_before_training(data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(arguments(data, "--report", str(tmp_path / "file" / "report.json"))) == 1
    assert "report.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        ["--batch", "0"],
        ["--steps", "-1"],
        ["--temperature", "0"],
        ["--unlabelled-weight", "1.5"],
        ["--temperature", "nan"],
        ["--seed", "-1"],
        ["--steps", "5", "--seconds", "5"],
        ["--steps", "5", "--encoder-calls", "5"],
        ["--sharing", "some"],
        ["--miner", "magic"],
    ],
)
def test_bad_options_are_refused(data, capsys, option):
    with pytest.raises(SystemExit) as stop:
        main(arguments(data, *option))
    assert stop.value.code == 2
    assert option[0] in capsys.readouterr().err
