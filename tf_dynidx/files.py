"""Outputs that appear whole or not at all.

A run that fails or is interrupted leaves what stood at its output path as it was. The parts are
written beside their final place, so that the last move is a rename within one file system.
"""

import contextlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np


class OutputError(ValueError):
    """An output that cannot be written; the message says what was received and what to do."""


def check_writable_target(
    path: str | os.PathLike, kind: Literal["file", "directory"], *, replace: bool = False
) -> None:
    """Refuses an output path that could not be written, before the work that leads to it.

    Nothing remains of the check. What happens to the path or the disk later is not covered.

    Args:
        path: Where the output is to be. Folders above it need not exist yet.
        kind: ``"file"`` for what ``write_json`` writes, ``"directory"`` for ``new_directory``.
        replace: As for ``new_directory``.

    Raises:
        OutputError: If the path is taken by something that the output would not replace, or if
            nothing can be written beside it.
    """
    if kind == "file":
        if Path(path).is_dir():
            raise OutputError(
                f"The output is a file. Received: the directory {os.fspath(path)!r}. Name a file in it."
            )
        if _is_special(path):
            return
    else:
        _refuse_taken(path, replace)

    parent = Path(os.path.realpath(path)).parent
    while not parent.exists():
        parent = parent.parent
    probe = _sibling(parent / "probe")
    try:
        # Permissions alone do not tell: the file system may be read-only, or full.
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise OutputError(
            f"Nothing can be written in {os.fspath(parent)!r}: {error.strerror}. "
            f"Received: {os.fspath(path)!r}. Name a path in a folder that you can write to."
        ) from error


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """Writes an object as JSON, replacing an earlier file in one step.

    Folders above the path are made. NumPy numbers and arrays are written as numbers and lists. A
    device or pipe, such as ``/dev/stdout``, is written to as it is.

    Args:
        path: Where the file is to be.
        obj: What ``json`` can write, NumPy included.

    Raises:
        OutputError: If ``obj`` holds a number that JSON does not have (NaN or infinity). An earlier
            file stays as it was.
    """
    plain = json.loads(json.dumps(obj, default=_plain))
    for where, number in _not_finite(plain):
        raise OutputError(
            f"JSON has no NaN or infinity. Received: {number} at {where or 'the top'}, for "
            f"{os.fspath(path)!r}. Leave the key out, or write null."
        )
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file, replacing an earlier one in one step.

    Folders above the path are made. A device or pipe, such as ``/dev/stdout``, is written to as it is.

    Args:
        path: Where the file is to be.
        content: All of it.
    """
    if _is_special(path):
        Path(path).write_bytes(content)
        return
    # Through links: the file that a link names is replaced, not the link.
    final = Path(os.path.realpath(path))
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(final)
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_directory(path: str | os.PathLike, *, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder that becomes ``path`` when the block succeeds.

    When the block raises or is interrupted, the folder is removed and ``path`` stays as it was. A
    process that is killed outright leaves the folder, under a hidden name beside ``path``.

    Args:
        path: Where the folder is to be; nothing, or an empty directory. Folders above it are made.
        replace: Whether a directory with contents is replaced. It is deleted, whatever it holds,
            once the new one stands in its place.

    Raises:
        OutputError: If ``path`` is taken.

    Example:

        with new_directory("exported") as folder:
            tf.saved_model.save(model, str(folder))
    """
    _refuse_taken(path, replace)
    final = Path(os.path.realpath(path))
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(final)
    temporary.mkdir()
    try:
        yield temporary
        if replace and final.exists():
            _swap(temporary, final)
        else:
            # Fails, as it should, where a directory has been filled in the meantime.
            os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _swap(new: Path, final: Path) -> None:
    """Puts a directory in the place of another, which is deleted."""
    earlier = _sibling(final)
    os.replace(final, earlier)
    try:
        os.replace(new, final)
    except BaseException:
        os.replace(earlier, final)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def _refuse_taken(path: str | os.PathLike, replace: bool) -> None:
    """Refuses what ``new_directory`` would not put a directory in the place of."""
    path = Path(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise OutputError(
            f"The output is a directory. Received: the file {os.fspath(path)!r}. "
            "Name a path that does not exist yet."
        )
    if os.path.ismount(path):
        raise OutputError(
            f"A mount point cannot be replaced. Received: {os.fspath(path)!r}. Name a directory in it."
        )
    if not replace and any(path.iterdir()):
        raise OutputError(
            f"The output directory is not empty. Received: {os.fspath(path)!r}. "
            "Name another path, or remove what is there."
        )


def _is_special(path: str | os.PathLike) -> bool:
    """Whether a path is a device, a pipe or a socket: a rename would put a file in its place."""
    path = Path(path)
    return path.exists() and not path.is_file() and not path.is_dir()


def _sibling(path: Path) -> Path:
    """An unused, hidden name beside a path.

    ``tempfile`` is not used, as what it makes is private to the user, and would stay so.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(
        f"JSON has no {type(value).__name__}. Received: {value!r}. Convert it to numbers, strings, "
        "lists and dicts."
    )


def _not_finite(value: Any, where: str = "") -> Iterator[tuple[str, float]]:
    """Yields each NaN and infinity in what JSON holds, with the keys that lead to it."""
    if isinstance(value, float) and not math.isfinite(value):
        yield where, value
    elif isinstance(value, dict):
        for key, member in value.items():
            yield from _not_finite(member, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for position, member in enumerate(value):
            yield from _not_finite(member, f"{where}[{position}]")
