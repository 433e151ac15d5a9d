"""Tables of a benchmark: collected row by row, printed part by part."""

import dataclasses
import math
import sys
import textwrap

from tf_dynidx import files
from tf_dynidx.cli.bench.measure import Note
from tf_dynidx.cli.tables import aligned

_WIDTH = 100


class Tables:
    """What has been measured so far.

    Attributes:
        rows: dict from table to a list of its rows, each a dict.
        notes: list of str.
    """

    def __init__(self, titles):
        """Makes empty tables.

        Args:
            titles: dict from table to what is printed above it.
        """
        self._titles = titles
        self.rows, self.notes = {}, []
        self._printed = set()

    def add(self, item):
        """Takes in a `Row`, or a `Note`, which is printed at once."""
        if isinstance(item, Note):
            self.notes.append(item.text)
            print(textwrap.fill(item.text, _WIDTH), flush=True)
        else:
            # Such as the ratio to an error of zero: JSON has no number for it.
            values = {name: _finite(value) for name, value in item.values.items()}
            self.rows.setdefault(item.table, []).append(values)

    def print_new(self):
        """Prints the tables that have not been printed yet."""
        for name, rows in self.rows.items():
            if name not in self._printed:
                print()
                print(textwrap.fill(self._titles[name], _WIDTH))
                print(text_table(rows), flush=True)
                self._printed.add(name)


def run_parts(titles, parts, settings):
    """Runs the parts of a benchmark one after the other, prints their tables and writes the report.

    Args:
        titles: dict from table to what is printed above it.
        parts: iterable of iterables of `Row` and `Note`, which measure as they are gone through.
        settings: dataclass; its `report` is a file, or None.

    Returns:
        int, the exit status: 0 done, 130 stopped by Ctrl-C, and what had been measured is printed and
        written.
    """
    tables, interrupted = Tables(titles), False
    try:
        for part in parts:
            for item in part:
                tables.add(item)
            tables.print_new()
    except KeyboardInterrupt:
        interrupted = True
        tables.print_new()
        print("tf-dynidx bench: stopped; what has been measured is kept", file=sys.stderr)
    if settings.report:
        report = {
            "settings": dataclasses.asdict(settings),
            "interrupted": interrupted,
            "notes": tables.notes,
            "tables": tables.rows,
        }
        files.write_json(settings.report, report)
        print(f"report: {settings.report}")
    return 130 if interrupted else 0


def text_table(rows):
    """A table as text: a line of column names, then one for each row, all of the same columns."""
    lines = [[name.replace("_", " ") for name in rows[0]]]
    lines += [[_text(value) for value in row.values()] for row in rows]
    return aligned(lines, [not isinstance(value, str) for value in rows[0].values()])


def _finite(value):
    """The value, or None for NaN and infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value):
    """A value in few digits: three that count, and none after the point from a thousand up."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 0.001:
        digits = 3 if abs(value) < 10 else 1
        return f"{value:.{digits}f}"
    return f"{value:.1e}"
