"""What keeps trainings on the command line short in tests that are about something else."""

import pytest

from tf_dynidx.cli import training
from tf_dynidx.models import DualEncoder


@pytest.fixture
def untimed(monkeypatch):
    """Leaves out the timing of the mining, which compiles it once more."""
    monkeypatch.setattr(training, "_mining_seconds", lambda model, data: 0.0)


@pytest.fixture
def uncompiled(monkeypatch):
    """Leaves out XLA, which takes long over the steps of large miners."""
    compile_ = DualEncoder.compile
    monkeypatch.setattr(
        DualEncoder,
        "compile",
        lambda model, **options: compile_(model, **options | {"jit_compile": False}),
    )
