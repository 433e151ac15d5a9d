"""`Table`: the encodings of all targets, as an export keeps them."""

from typing import NamedTuple

import numpy as np

ROW_DTYPES = ("float32", "float16", "int8")
_LARGEST = 127  # of int8, the same on both sides of zero


class Table(NamedTuple):
    """Encodings in few bytes.

    Attributes:
        rows: float32, float16 or int8 [targets, dim].
        scales: float32 [targets], what int8 rows are to be multiplied by; None for others.
    """

    rows: np.ndarray
    scales: np.ndarray | None


def packed(embeddings: np.ndarray, row_dtype: str) -> Table:
    """Encodings as a table.

    int8 rows are each divided by their own largest coordinate over 127, so that the error of a
    coordinate is at most 1/254 of the largest of its row.

    Args:
        embeddings: float32 [targets, dim], finite.
        row_dtype: "float32", "float16" or "int8".

    Raises:
        ValueError: a row is too large for float16.
    """
    if row_dtype == "float32":
        return Table(np.asarray(embeddings, np.float32), None)
    if row_dtype == "float16":
        with np.errstate(over="ignore"):
            rows = embeddings.astype(np.float16)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise ValueError(
                "embeddings are at most 65504 in float16: use another row_dtype. "
                f"Received: row {row} has {np.abs(embeddings[row]).max()}."
            )
        return Table(rows, None)
    scales = np.abs(embeddings).max(axis=1) / _LARGEST
    divisors = np.where(scales > 0, scales, 1.0)[:, None]
    return Table(np.rint(embeddings / divisors).astype(np.int8), scales.astype(np.float32))


def unpacked(table: Table) -> np.ndarray:
    """What the rows stand for: float32 [targets, dim]."""
    rows = table.rows.astype(np.float32)
    return rows if table.scales is None else rows * table.scales[:, None]


def taken(table: Table, places: np.ndarray) -> Table:
    """The rows at places, int [targets], as they are; zeros where a place is -1."""
    return Table(*(None if part is None else _at(part, places) for part in table))


def joined(first: Table, second: Table) -> Table:
    """The rows of two tables of the same dtype, one after the other."""
    pairs = zip(first, second, strict=True)
    return Table(*(None if a is None else np.concatenate([a, b]) for a, b in pairs))


def overwritten(table: Table, places: np.ndarray, fresh: Table) -> Table:
    """A table with other rows, of the same dtype, at places, int [rows]."""

    def changed(part, new):
        part = part.copy()
        part[places] = new
        return part

    pairs = zip(table, fresh, strict=True)
    return Table(*(None if a is None else changed(a, b) for a, b in pairs))


def _at(part, places):
    found = part[np.maximum(places, 0)]
    found[places < 0] = 0
    return found
