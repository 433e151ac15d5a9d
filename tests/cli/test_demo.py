"""The demo, from the docstrings to the questions asked."""

import json
import os
import re

import numpy as np

from tf_dynidx.cli import demo as demo_module
from tf_dynidx.cli.docstrings import load_docstring_corpus
from tf_dynidx.cli.main import main

WORDS = ["red", "green", "blue", "small", "large", "round", "square", "soft", "hard", "warm"]


def test_demo_on_a_small_package(tmp_path, untimed, uncompiled, monkeypatch, capsys):
    """The whole demo, on a package of forty functions, two seconds a run."""
    package = tmp_path / "package"
    package.mkdir()
    rng = np.random.default_rng(0)
    functions = []
    for number in range(400):
        first, second = rng.choice(WORDS, 2, replace=False)
        functions.append(
            f"def make_{first}_{second}_{number}(size):\n"
            f'    """Makes a {first} thing number {number} that is {second}."""\n'
            f"    return build_{first}(size) + {second}({number})\n"
        )
    (package / "__init__.py").write_text("\n".join(functions))

    def small(progress):
        return load_docstring_corpus(tmp_path / "cache", progress, sources=[package])

    monkeypatch.setattr(demo_module, "load_docstring_corpus", small)
    # The demo's batches are larger than this corpus.
    runs = [demo_module.dataclasses.replace(run, batch=32) for run in demo_module._RUNS]
    monkeypatch.setattr(demo_module, "_RUNS", runs)
    output = tmp_path / "output"
    assert main(["demo", "--seconds", "2", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"miner +recall@1 +recall@10 +recall@64 +mrr +steps +seconds +mining +full encodes", printed
    )
    assert re.search(r"^in-batch +0\.\d+", printed, re.MULTILINE)
    assert re.search(r"^ +tree +0\.\d+", printed, re.MULTILINE)
    for question in demo_module._QUESTIONS:
        assert question in printed
    assert "search" in printed.splitlines()[-1]
    assert (output / "recall.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((output / "tree.json").read_text())["full_encodes"] == 1
    # A second run replaces what the first one left.
    assert os.path.isdir(output / "export")
