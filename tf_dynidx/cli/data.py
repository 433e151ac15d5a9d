"""Targets and training pairs from JSON Lines files, plain or gzipped.

A target is a line ``{"id": str, "text": str}``. A pair is a line ``{"query": str, "target": id}``
or ``{"query": str, "targets": [id, ...]}``. Keys beyond these are ignored, and blank lines are
skipped.

Everything that cannot be trained on is refused here, with the file and the line, so that nothing
later has to doubt its input: every identifier that is read is a string, unique, and known.
"""

import difflib
import functools
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tf_dynidx import files

_GZIP_MAGIC = b"\x1f\x8b"

# Comparing a misspelt identifier with every other one takes seconds beyond this many.
_MAX_IDENTIFIERS_TO_COMPARE = 5_000

# A line can be a whole document; its beginning is enough to recognise it.
_MAX_RECEIVED_SHOWN = 100


class DataError(ValueError):
    """A file that cannot be used; the message says where, what was received and what to do."""


@dataclass(frozen=True)
class Targets:
    """The targets in file order; a target's *row* is its place in that order.

    Attributes:
        identifiers: One per target, without repeats.
        texts: One per target; ``""`` for targets that are known by their identifier alone.
    """

    identifiers: list[str]
    texts: list[str]

    @functools.cached_property
    def rows(self) -> dict[str, int]:
        """The row of each identifier."""
        return {identifier: row for row, identifier in enumerate(self.identifiers)}


@dataclass(frozen=True, eq=False)  # eq=False: arrays do not compare to one truth value.
class Pairs:
    """Queries with the rows of their positive targets, in file order.

    Attributes:
        queries: One per pair. The same query may occur in several pairs.
        positives: One array per pair, int32 ``[number of positives]``: rows into ``Targets``, at
            least one, without repeats, in the order in which the line names them.
    """

    queries: list[str]
    positives: list[np.ndarray]


def given_files(options):
    """Those of --targets, --train and --test that options name a file for: list of str."""
    return [f"--{name}" for name in ("targets", "train", "test") if getattr(options, name)]


def all_or_none(options):
    """bool, whether all of `given_files` are given.

    Raises:
        DataError: some are, and some are not.
    """
    given = given_files(options)
    if 0 < len(given) < 3:
        raise DataError(
            "A model is trained on --targets, --train and --test together. "
            f"Received: {' '.join(given)} alone. Give all three, or none."
        )
    return bool(given)


def read_all(targets, train, test):
    """Targets, training pairs and test pairs of three files: (`Targets`, `Pairs`, `Pairs`)."""
    corpus = read_targets(targets)
    return corpus, read_pairs(train, corpus), read_pairs(test, corpus)


def read_targets(path: str | os.PathLike) -> Targets:
    """Reads the targets of a corpus.

    Args:
        path: JSON Lines, plain or gzipped, whatever its suffix.

    Raises:
        DataError: If the file or one of its lines cannot be used, or if it holds no target.
    """
    line_of: dict[str, int] = {}
    texts = []
    for line, record in _read_objects(path):
        identifier = _string(record, "id", path, line)
        if not identifier:
            raise _refusal(
                path, line, '"id" is empty', _shown(record), "Give the target an identifier."
            )
        if identifier in line_of:
            raise _refusal(
                path,
                line,
                f"this identifier is that of line {line_of[identifier]} already",
                _shown(identifier),
                "Remove one of the two lines, or give them different identifiers.",
            )
        line_of[identifier] = line
        texts.append(_string(record, "text", path, line))
    if not texts:
        raise _refusal(
            path,
            None,
            "the corpus has no targets",
            "a file without a line of data",
            'Write one {"id": ..., "text": ...} a line.',
        )
    return Targets(list(line_of), texts)


def read_pairs(path: str | os.PathLike, targets: Targets) -> Pairs:
    """Reads queries with their positive targets.

    An identifier that one pair names more than once counts once.

    Args:
        path: JSON Lines, plain or gzipped, whatever its suffix.
        targets: The corpus that the pairs refer to.

    Raises:
        DataError: If the file or one of its lines cannot be used, if a line names a target that is
            not in ``targets``, or if the file holds no pair.
    """
    row_of = targets.rows
    queries = []
    positives = []
    for line, record in _read_objects(path):
        queries.append(_string(record, "query", path, line))
        identifiers = _positives(record, path, line)
        try:
            rows = [row_of[identifier] for identifier in identifiers]
        except KeyError as error:
            raise _unknown_target(error.args[0], targets, path, line) from None
        positives.append(np.array(rows, np.int32))
    if not queries:
        raise _refusal(
            path,
            None,
            "there are no pairs",
            "a file without a line of data",
            'Write one {"query": ..., "target": ...} a line.',
        )
    return Pairs(queries, positives)


def write_targets(path: str | os.PathLike, targets: Targets) -> None:
    """Writes targets as `read_targets` reads them."""
    records = zip(targets.identifiers, targets.texts, strict=True)
    _write_objects(path, ({"id": identifier, "text": text} for identifier, text in records))


def write_pairs(path: str | os.PathLike, pairs: Pairs, targets: Targets) -> None:
    """Writes queries with their positive targets as `read_pairs` reads them."""
    records = zip(pairs.queries, pairs.positives, strict=True)
    _write_objects(
        path,
        (
            {"query": query, "targets": [targets.identifiers[row] for row in rows]}
            for query, rows in records
        ),
    )


def by_query(pairs: Pairs) -> dict[str, np.ndarray]:
    """The rows of all positives of each distinct query, in order of first appearance."""
    known: dict[str, np.ndarray] = {}
    for query, rows in zip(pairs.queries, pairs.positives, strict=True):
        known[query] = np.union1d(known[query], rows) if query in known else rows
    return known


def digest(data: Targets | Pairs) -> str:
    """What tells data from other data: 16 hexadecimal digits of a SHA-256 of all that was read.

    The same for the same lines, whatever file they are in, gzipped or not.
    """
    sha = hashlib.sha256()
    if isinstance(data, Targets):
        columns = data.identifiers, data.texts
    else:
        columns = (data.queries,)
        lengths = np.array([len(rows) for rows in data.positives], np.int64)
        sha.update(lengths.tobytes() + np.concatenate(data.positives).tobytes())
    for column in columns:
        for text in column:
            raw = text.encode()
            # With its length in front, no text can be taken for two.
            sha.update(b"%d " % len(raw) + raw)
    return sha.hexdigest()[:16]


def _positives(record: dict[str, Any], path: str | os.PathLike, line: int) -> list[str]:
    """The identifiers that a pair names, each once."""
    if ("target" in record) == ("targets" in record):
        raise _refusal(
            path,
            line,
            'a pair has either "target" or "targets"',
            _shown(record),
            'Write "target": id for one positive, "targets": [id, ...] for several, never both.',
        )
    if "target" in record:
        if isinstance(record["target"], list):
            raise _refusal(
                path,
                line,
                '"target" is one identifier',
                _shown(record["target"]),
                'Name the key "targets" to give several.',
            )
        return [_string(record, "target", path, line)]
    identifiers = record["targets"]
    if not isinstance(identifiers, list):
        raise _refusal(
            path,
            line,
            '"targets" is a list of identifiers',
            _shown(identifiers),
            'Write ["..."], or name the key "target" to give one.',
        )
    if not identifiers:
        raise _refusal(
            path,
            line,
            '"targets" is empty',
            _shown(record),
            "Give the query a positive target, or remove the line.",
        )
    for identifier in identifiers:
        if not isinstance(identifier, str):
            raise _not_a_string("targets", identifier, path, line)
    return list(dict.fromkeys(identifiers))


def _string(record: dict[str, Any], key: str, path: str | os.PathLike, line: int) -> str:
    try:
        value = record[key]
    except KeyError:
        raise _refusal(
            path, line, f'the key "{key}" is missing', _shown(record), f'Add "{key}": "...".'
        ) from None
    if not isinstance(value, str):
        raise _not_a_string(key, value, path, line)
    if not value.isascii():
        # An escape can name half of a surrogate pair, which nothing could encode again.
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _refusal(
                path,
                line,
                f'"{key}" holds half of a surrogate pair, which is no character',
                json.dumps(value),
                "Write both halves, or the character itself in UTF-8.",
            ) from error
    return value


def _write_objects(path, records):
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    files.write_bytes(path, "".join(lines).encode())


def _read_objects(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number, from 1, and the object of each line that is not blank."""
    for line, raw in _read_lines(path):
        # A byte order mark is not part of the data; some editors write it.
        encoding = "utf-8-sig" if line == 1 else "utf-8"
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError as error:
            raise _refusal(
                path,
                line,
                f"byte {error.start + 1} of the line is not UTF-8",
                f"{raw[error.start : error.start + 8]}",
                "Save the file as UTF-8, plain or gzipped.",
            ) from error
        if not text or text.isspace():
            continue
        try:
            record = json.loads(text)
        # Besides what is not JSON: integers too long to convert, brackets nested too deeply.
        except (ValueError, RecursionError) as error:
            raise _refusal(
                path,
                line,
                f"this is not JSON ({error})",
                repr(text.strip()),
                "Write one JSON object a line, each whole on its line.",
            ) from error
        if not isinstance(record, dict):
            raise _refusal(
                path,
                line,
                "this is not a JSON object",
                _shown(record),
                "Write one object a line, without a list around them.",
            )
        yield line, record


def _read_lines(path: str | os.PathLike) -> Iterator[tuple[int, bytes]]:
    """Yields the number, from 1, and the bytes of each line."""
    line = 0
    try:
        with open(path, "rb") as file:
            for line, raw in enumerate(_decompressed(file), start=1):
                yield line, raw
    except FileNotFoundError as error:
        raise _refusal(
            path,
            None,
            "there is no such file",
            f"the path {os.fspath(path)!r} in {os.getcwd()}",
            "Check the path.",
        ) from error
    except IsADirectoryError as error:
        raise _refusal(
            path, None, "this is a directory", repr(os.fspath(path)), "Name one file in it."
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _refusal(
            path,
            None,
            f"the gzip data are damaged or incomplete ({error})",
            f"{line} whole lines before the damage",
            "Copy or compress the file again.",
        ) from error
    except OSError as error:
        raise _refusal(
            path,
            None,
            "the file cannot be read",
            f"{type(error).__name__}, {error.strerror}",
            "Check its permissions and the disk.",
        ) from error


def _decompressed(file: BinaryIO) -> BinaryIO:
    # The first bytes decide, not the suffix. peek() leaves them unread, so that pipes work too.
    if file.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC):
        return gzip.GzipFile(fileobj=file)
    return file


def _not_a_string(key: str, value: Any, path: str | os.PathLike, line: int) -> DataError:
    if isinstance(value, int | float) and not isinstance(value, bool):
        remedy = f'Quote it: "{value}".'
    else:
        remedy = "Write a string."
    where = f'"{key}" holds something that' if key == "targets" else f'"{key}"'
    return _refusal(path, line, f"{where} is not a string", _shown(value), remedy)


def _unknown_target(identifier: str, targets: Targets, path: str | os.PathLike, line: int) -> DataError:
    near = _nearest(identifier, targets.identifiers)
    suggestion = "" if near is None else f" Perhaps {_shown(near)} is meant."
    return _refusal(
        path,
        line,
        f"this target is not among the {len(targets.identifiers):,} of the corpus",
        _shown(identifier),
        f"Add it to the targets, or remove it from the pair.{suggestion}",
    )


def _nearest(identifier: str, identifiers: list[str]) -> str | None:
    """An identifier that this one may be a slip of."""
    folded = identifier.strip().casefold()
    for candidate in identifiers:
        if candidate.strip().casefold() == folded:
            return candidate
    if len(identifiers) > _MAX_IDENTIFIERS_TO_COMPARE:
        return None
    return next(iter(difflib.get_close_matches(identifier, identifiers, n=1, cutoff=0.8)), None)


def _refusal(
    path: str | os.PathLike, line: int | None, problem: str, received: str, remedy: str
) -> DataError:
    """The one form of every message: where, what is wrong, what was received, what to do."""
    where = f"{Path(path)}" if line is None else f"{Path(path)}, line {line}"
    if len(received) > _MAX_RECEIVED_SHOWN:
        received = f"{received[:_MAX_RECEIVED_SHOWN]}…"
    return DataError(f"{where}: {problem}. Received: {received}. {remedy}")


def _shown(value: Any) -> str:
    """A value as a JSON Lines file writes it."""
    return json.dumps(value, ensure_ascii=False)
