"""What a comparison is: the runs it is made of, and what tells it from another."""

import dataclasses
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from tf_dynidx import files
from tf_dynidx.cli.checkpoint import refuse_others
from tf_dynidx.cli.compare.methods import Method
from tf_dynidx.cli.data import digest
from tf_dynidx.cli.settings import Settings

_FILE = "comparison.json"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        method: its `Method`.
        settings: its `Settings`.
        name: for its files.
    """

    method: Method
    settings: Settings
    name: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a comparison is.

    Attributes:
        paths: dict from targets, train and test to the path of the file.
        digests: the same to the digest of what is in it.
        numbers: the same to the number of lines.
        methods: tuple of `Method`.
        settings: `Settings` that all methods have, but for their own.
        seeds: tuple of int.
    """

    paths: dict[str, str]
    digests: dict[str, str]
    numbers: dict[str, int]
    methods: tuple[Method, ...]
    settings: Settings
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, paths, data, methods, settings, seeds) -> "Plan":
        """The plan for data that has been read.

        Args:
            paths: dict from targets, train and test to a path.
            data: (`Targets`, `Pairs`, `Pairs`), what is in them.
            methods, settings, seeds: as in the attributes.

        Raises:
            ValueError: a method cannot be run on these data.
        """
        targets, train, test = data
        numbers = len(targets.identifiers), len(train.queries), len(test.queries)
        plan = cls(
            paths=dict(paths),
            digests=dict(zip(paths, map(digest, data), strict=True)),
            numbers=dict(zip(paths, numbers, strict=True)),
            methods=tuple(methods),
            settings=settings,
            seeds=tuple(seeds),
        )
        for run in plan.runs():
            run.settings.check(numbers[0])
        return plan

    def runs(self) -> list[Run]:
        """All runs, seed by seed, so that there is something of every method early on."""
        return [
            Run(method, method.settings(self.settings, seed), f"{_plain(method.label)}_seed={seed}")
            for seed in self.seeds
            for method in self.methods
        ]

    def common(self) -> dict[str, Any]:
        """The settings that all methods have, but for their own."""
        settings = dataclasses.asdict(self.settings)
        del settings["miner"], settings["seed"]
        return settings

    def identity(self) -> dict[str, Any]:
        """What tells it from another comparison: what JSON can write."""
        return {
            "data": self.digests,
            "miners": ",".join(method.label for method in self.methods),
            "seeds": ",".join(map(str, self.seeds)),
            "settings": self.common(),
            "keras": environment()["keras"],
        }

    def claim(self, folder: Path) -> None:
        """Makes a folder that of this comparison, or finds that it is.

        Raises:
            ValueError: it is that of another, or holds other things.
        """
        file = folder / _FILE
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            what = f"The folder {str(folder)!r} has a comparison with other arguments or data"
            refuse_others(what, found, self.identity())
            return
        files.check_writable_target(folder, "directory")
        files.write_json(file, self.identity())


def environment() -> dict[str, Any]:
    """Where the figures come from: versions and the machine, as far as that can be told."""
    # As TensorFlow decides it; asking TensorFlow would be importing it.
    legacy = os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True")
    return {
        "tensorflow": importlib.metadata.version("tensorflow"),
        "keras": 2 if legacy else 3,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": _processors(),
    }


def _processors():
    """How many this process may use, where the system can tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _plain(label):
    """A label as a part of a file's name."""
    return label.replace(":", "_")
