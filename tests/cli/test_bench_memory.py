"""`tf-dynidx bench memory`: what it measures, and how it is run."""

import json

import pytest

from tf_dynidx.cli.bench import memory
from tf_dynidx.cli.main import main


def test_chunks_take_less_and_lose_alike(tmp_path, capsys):
    report = tmp_path / "report.json"
    sizes = ["--negatives", "512", "--chunk", "64", "--width", "1024", "--depth", "4"]
    assert main(["bench", "memory", *sizes, "--report", str(report)]) == 0
    whole, chunked = json.loads(report.read_text())["tables"]["memory"]
    assert (whole["chunk"], chunked["chunk"]) == ("none", 64)
    assert whole["candidates"] == chunked["candidates"] == 8 * 513
    # What all hidden layers keep for their gradients, each number at least once.
    assert whole["step"] > 4 * 8 * 513 * 1024 * 4 / 2**20
    assert chunked["step"] < 0.7 * whole["step"]
    assert chunked["share"] == pytest.approx(chunked["step"] / whole["step"])
    assert chunked["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert "Memory of a training step" in capsys.readouterr().out


def test_bad_size_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "memory", "--negatives", "0"])
    assert "--negatives" in capsys.readouterr().err
    assert memory.Settings().negatives == 1024
