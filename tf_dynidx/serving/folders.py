"""Where an export is: a SavedModel by itself, or numbered versions of it in one folder."""

import os
from pathlib import Path

from tf_dynidx.index import checks


def versions(path: str | os.PathLike) -> list[int]:
    """The versions in a folder, ascending: its folders that have a number for a name.

    What is still being written has a name that is none.
    """
    path = Path(path)
    if not path.is_dir():
        return []
    names = (entry.name for entry in path.iterdir() if (entry / "saved_model.pb").is_file())
    return sorted(int(name) for name in names if _is_version(name))


def newest(path: str | os.PathLike) -> Path:
    """The newest version in a folder; the folder itself where there are none."""
    found = versions(path)
    return Path(path) / str(found[-1]) if found else Path(path)


def destination(path: str | os.PathLike, version: int | str | None) -> Path:
    """The folder that an export is written to.

    Args:
        path: As for `export_retrieval`.
        version: A number, "next" (one above the newest, from 1 on), or None: the path itself.

    Raises:
        ValueError: If the version is anything else, or the path is that of a SavedModel.
    """
    if version is None:
        return Path(path)
    if (Path(path) / "saved_model.pb").exists():
        raise ValueError(
            "Versions stand in a folder of their own. Received: the SavedModel "
            f"{os.fspath(path)!r}. Name another folder."
        )
    if version == "next":
        taken = [int(name) for name in _names(path) if _is_version(name)]
        return Path(path) / str(max(taken, default=0) + 1)
    if isinstance(version, str):
        raise ValueError(f'version is a number, "next" or None. Received: version={version!r}.')
    return Path(path) / str(checks.positive_int("version", version))


def _names(path):
    return os.listdir(path) if os.path.isdir(path) else []


def _is_version(name: str) -> bool:
    # As TF Serving reads them; "007" would be one for it, but is not what is written here.
    return name.isascii() and name.isdecimal() and str(int(name)) == name
