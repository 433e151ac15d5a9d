import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import tensorflow as tf

from tests.serving.small import DIM, Scale, export
from tf_dynidx.cli.main import main

NAMES = [f"thing {row}" for row in range(40)]


class Lengths(Scale):
    """The encoding of a text is an axis: that of its length."""

    def __call__(self, text):
        return self.factor * tf.one_hot(tf.strings.length(text), DIM)


@pytest.fixture
def folder(tmp_path):
    """An export without versions: thing 0 to 39 have texts of 0 to 7 letters, in turn."""
    text = tf.TensorSpec([None], tf.string)
    encode = {"encode_query": Lengths(), "encode_target": Lengths(2.0)}
    specs = {"query_spec": text, "target_spec": text}
    rows = np.eye(DIM, dtype=np.float32)[np.arange(40) % DIM]
    return export(tmp_path / "exported", rows, identifiers=NAMES, k=5, **encode, **specs)


def write(path, targets):
    lines = (json.dumps({"id": name, "text": text}) + "\n" for name, text in targets)
    path.write_text("".join(lines))
    return str(path)


def test_next_versions_are_packed_changed_and_searched(folder, tmp_path, capsys):
    base = str(tmp_path / "served")
    options = ["--index", "exact", "--row-dtype", "float16", "-k", "4"]
    assert main(["export", folder, "--output", base, *options]) == 0
    assert capsys.readouterr().out.startswith(f"export: {base}/1 ")
    added = write(tmp_path / "added.jsonl", [("brand new", "abc")])
    updated = write(tmp_path / "updated.jsonl", [("thing 0", "xyz")])
    (tmp_path / "removed").write_text("thing 3\n\nthing 11\n")
    changes = ["--added", added, "--updated", updated, "--removed", str(tmp_path / "removed")]
    assert main(["export", base, *changes]) == 0
    capsys.readouterr()
    assert main(["search", base, "abc", "-k", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in lines[1:]] == [
        "thing 0",
        "brand new",
        "thing 19",
        "thing 27",
    ]
    card = json.loads((tmp_path / "served/2/assets.extra/model_card.json").read_text())
    assert card["refreshed"] == {"from": "1", "added": 1, "removed": 2, "updated": 1}
    assert (card["k"], card["index"]["kind"], card["index"]["row_dtype"]) == (4, "exact", "float16")


def test_what_cannot_be_done_is_refused_in_one_line(folder, tmp_path, capsys):
    (tmp_path / "removed").write_text("nobody\n")
    for arguments, message in [
        (["export", folder], "export: An export without versions .* Name an output folder"),
        (["export", folder, "--output", folder, "--removed", str(tmp_path / "no")], "no: this cannot"),
        (
            ["export", folder, "--output", folder, "--removed", str(tmp_path / "removed")],
            "to be removed is unknown. Received: b'nobody'",
        ),
        (["serve", str(tmp_path)], "serve: There is no export to serve. Received: "),
    ]:
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert re.search(message, error) and error.count("\n") == 1


def test_serves_until_it_is_stopped(folder):
    command = [sys.executable, "-m", "tf_dynidx.cli.main", "serve", folder, "--name", "things"]
    process = subprocess.Popen(
        [*command, "--port", "0", "--rest-port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        lines = [process.stdout.readline() for _ in range(5)]
        assert "For development, not for production." in lines[0]
        page, rest = (line.split()[1] for line in lines[1:3])
        assert re.fullmatch(r"  gRPC  127.0.0.1:\d+\n", lines[3])
        with urllib.request.urlopen(page) as response:
            assert b"<h1>things</h1>" in response.read()
        with urllib.request.urlopen(rest, b'{"instances": ["abc"]}') as response:
            (found,) = json.load(response)["predictions"]
        assert found["identifiers"] == [f"thing {row}" for row in (3, 11, 19, 27, 35)]
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
