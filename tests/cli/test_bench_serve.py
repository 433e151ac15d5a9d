"""`tf-dynidx bench serve`: what it measures, and how it is run."""

import json

import numpy as np
import pytest

from tests.serving.small import DIM, embeddings, export
from tf_dynidx.cli.bench import clients, serve
from tf_dynidx.cli.main import main
from tf_dynidx.serving.server import Server


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(serve, "SERVED_ROWS", 1000)
    monkeypatch.setattr(serve, "CLIENTS", 4)
    monkeypatch.setattr(serve, "QUERIES", 40)
    monkeypatch.setattr(serve, "ROUNDS", 1)
    monkeypatch.setattr(serve, "EXPORTS", (("exact", "float32", None), ("tree", "int8", 0.2)))


def test_exports_and_server_are_measured(small, tmp_path, capsys):
    report, archive = tmp_path / "report.json", tmp_path / "real.npz"
    np.savez(archive, targets=embeddings(300), queries=embeddings(50, seed=1))
    arguments = ["--rows", "1000", "--requests", "100", "--encodings", str(archive)]
    assert main(["bench", "serve", *arguments, "--report", str(report)]) == 0
    tables = json.loads(report.read_text())["tables"]
    assert [load["over"] for load in tables["load"]] == ["REST", "gRPC"]
    for load in tables["load"]:
        assert load["answered"] == load["by_version_1"] + load["by_version_2"] == 100
        assert load["mixed"] == load["errors"] == 0
        assert 0 < load["p50"] <= load["p90"] <= load["p99"] <= load["max"]
    random, tree, real, _ = tables["throughput"]
    assert (random["targets"], real["targets"]) == (1000, 300)
    assert random["recall"] == real["recall"] == 1.0
    assert random["times_exact_1"] == random["times_exact_32"] == 1.0
    assert tree["budget"] == 200 and 0.3 < tree["recall"] <= 1.0
    assert tree["per_s_1"] == pytest.approx(tree["times_exact_1"] * random["per_s_1"])
    assert "The development server" in capsys.readouterr().out


def test_clients_tell_answers_that_are_wrong(tmp_path):
    rows = np.arange(20)
    # Identifiers of two versions in one answer.
    mixed = np.where(rows % 2, 2**32, 2**33) + rows
    path = export(tmp_path / "exported", embeddings(20), identifiers=mixed)
    with Server(path, port=0, rest_port=0) as server:
        for over, port in (("REST", server.rest_port), ("gRPC", server.port)):
            answers = clients.ask(port, np.zeros([1, DIM]), 6, 2, over)
            assert (answers.versions == -1).all() and len(answers.seconds) == 6 and not answers.errors
            answers = clients.ask(port, np.zeros([1, DIM + 1]), 4, 2, over)
            assert (answers.versions == -2).all()
            assert "must have the shape" in answers.errors[0]
