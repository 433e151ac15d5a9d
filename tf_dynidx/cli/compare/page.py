"""The page of a comparison: one HTML file that loads nothing."""

import base64
import html

from tf_dynidx.cli.compare.plot import METRIC
from tf_dynidx.cli.compare.text import failures, tables
from tf_dynidx.cli.settings import BUDGETS

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; font-weight: 600; margin-bottom: .3rem; }
h2 { font-size: 1.05rem; font-weight: 600; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; max-width: 50rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; white-space: nowrap; }
th { font-weight: 600; border-bottom: 2px solid #888; }
td { border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
img { width: 100%; height: auto; }
.failed { color: #a00; }
.small { color: #666; font-size: .85rem; }
@media print {
  body { margin: 0; max-width: none; font-size: 10pt; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .5rem .15rem 0; }
  h2, figure, table { break-inside: avoid; }
  .wide { overflow: visible; }
}
"""
_TERMS = {
    "seconds": "Wall time of training: encoding and indexing the targets and compiling count, "
    "evaluating does not.",
    "mining": "Share of the seconds spent on mining, from steps that are run by themselves.",
    "encoder calls": "Targets encoded in training: positives and negatives of the steps, and what the "
    "miner encodes by itself.",
    "full encodes": "How often training encoded all targets.",
    "peak memory": "The most that the run's process had in memory at once, evaluation included.",
    "miner's own": "What the miner keeps between steps.",
    "accelerator": "The most that was in use on the GPUs.",
}


def page(found, image):
    """The page of a comparison.

    Args:
        found: dict, what `summary` returned, with the environment.
        image: bytes of the plot, PNG.

    Returns:
        str, HTML.
    """
    plan, environment = found["plan"], found["environment"]
    data = plan["data"]
    lines = [
        f"{data['targets']['number']:,} targets ({_code(data['targets']['path'])}), "
        f"{data['train']['number']:,} training pairs ({_code(data['train']['path'])}), "
        f"{data['test']['number']:,} test queries ({_code(data['test']['path'])}).",
        f"Each method with the same data, encoder and seeds ({_listed(plan['seeds'])}), "
        f"and {_budget(plan['settings'])}.",
        f"Settings of all methods, but for what is in a method's name: {_settings(plan['settings'])}.",
    ]
    parts = ["<h1>Comparison of miners</h1>", *(f"<p>{line}</p>" for line in lines)]
    for title, rows in tables(found):
        parts.append(f"<h2>{html.escape(title)}</h2>\n{_table(rows)}")
    parts += [f'<p class="failed">{html.escape(line)}</p>' for line in failures(found)]
    encoded = base64.b64encode(image).decode("ascii")
    parts += [
        f"<h2>{METRIC} along the way</h2>",
        f'<figure style="margin: 0"><img alt="{METRIC} against seconds and against encoder calls" '
        f'src="data:image/png;base64,{encoded}"></figure>',
        '<p class="small">A line is a seed. Points before the last are measured on the first 2,000 '
        "test queries at most.</p>",
        "<h2>Terms</h2>",
        *(f'<p class="small"><b>{name}</b>: {html.escape(term)}</p>' for name, term in _TERMS.items()),
        '<p class="small">'
        + html.escape(", ".join(f"{name} {value}" for name, value in environment.items()))
        + "</p>",
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Comparison of miners</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _table(rows):
    head, *rest = [[html.escape(cell) for cell in row] for row in rows]
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rest]
    return '<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _budget(settings):
    for name in BUDGETS:
        if settings[name] is not None:
            return f"a budget of {settings[name]:,} {name.replace('_', ' ')}"
    return "ten epochs"


def _settings(settings):
    return html.escape(
        ", ".join(
            f"{name.replace('_', ' ')} {value}"
            for name, value in settings.items()
            if name not in BUDGETS and value is not None
        )
    )


def _listed(values):
    return ", ".join(map(str, values))


def _code(text):
    return f"<code>{html.escape(text)}</code>"
