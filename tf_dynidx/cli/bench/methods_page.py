"""The page of `tf-dynidx bench methods`, in Markdown."""

import json
import re
from pathlib import Path

from tf_dynidx.cli.compare.text import failures, tables

_HEAD = """\
# The miners compared

Made by

    tf-dynidx bench methods --data DATA --output OUTPUT --page docs/methods.md

where the folder DATA holds a folder for each set, with `targets.jsonl`, `train.jsonl` and
`test.jsonl` (or `.jsonl.gz`) in [the form of the command line](command-line.md#tf-dynidx-train); no
set is shipped. What each miner does is in [miners.md](miners.md), what follows from the figures in
[results.md](results.md). A run is a process of its own, and every method of a table has the same
data, encoder, seeds and budget. All runs of a table are from one machine, those of different tables may
not be: a table stands until its comparison is run again. Seconds compare where a run had its machine to
itself; results.md says where it had not.
"""
_TAIL = """\
## What is not shown

Monath et al. (2023) train towers of transformers on passages of natural questions and of a web
search, with up to twenty million targets. Neither such a set nor such an encoder fits the machines
that this page is made on. What can be carried over is the table of [equal encoder
calls](#open-english-wordnet), since there, as with a large encoder, all that counts is how often a
target is encoded.
"""


def page(sets, output, before=""):
    """The page, of all comparisons that are done.

    Args:
        sets: of `DataSet`.
        output: folder of the comparisons.
        before: str, the page that it takes the place of: has the comparisons that the folder has not.

    Returns:
        str.
    """
    parts, kept = [_HEAD], _sections(before)
    for each in sets:
        parts.append(f"## {each.title}\n\n{each.about}\n")
        for name, question in each.comparisons():
            report = Path(output, name, "report.json")
            if report.is_file():
                found = json.loads(report.read_text(encoding="utf-8"))
                parts.append(_comparison(question, found))
            else:
                missing = f"### {question.title}\n\nNot run for this page: `--only {name}`.\n"
                parts.append(kept.get((each.title, question.title), missing))
    return "\n".join([*parts, _TAIL])


def _sections(page):
    """The comparisons of a page, by the titles of set and question: as `page` has put them there."""
    found = {}
    for part in re.split("^## ", page, flags=re.MULTILINE)[1:]:
        about, *sections = re.split("^### ", part, flags=re.MULTILINE)
        for section in sections:
            titles = tuple(text.partition("\n")[0] for text in (about, section))
            found[titles] = f"### {section.strip()}\n"
    return found


def _comparison(question, found):
    plan, environment = found["plan"], found["environment"]
    numbers = {name: f"{part['number']:,}" for name, part in plan["data"].items()}
    settings = ", ".join(
        f"{name} {value}" for name, value in plan["settings"].items() if value is not None
    )
    lines = [
        f"### {question.title}",
        "",
        f"{numbers['targets']} targets, {numbers['train']} training pairs, {numbers['test']} test "
        f"queries; seeds {', '.join(map(str, plan['seeds']))}. Settings but for what is in a method's "
        f"name: {settings}. TensorFlow {environment['tensorflow']}, Keras {environment['keras']}, "
        f"{environment['processors']} processors, accelerator: {environment['accelerator']}.",
        "",
    ]
    for title, rows in tables(found):
        lines += [f"{title}:", "", *_table(rows), ""]
    lines += [f"- {line}" for line in failures(found)]
    return "\n".join(lines)


def _table(rows):
    head, *rest = rows
    return [_row(head), _row(["---"] + ["---:"] * (len(head) - 1)), *map(_row, rest)]


def _row(cells):
    return f"| {' | '.join(cells)} |"
