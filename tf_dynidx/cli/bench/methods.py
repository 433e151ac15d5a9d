"""`tf-dynidx bench methods`: the miners on three sets, and the page that says what came out."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from tf_dynidx import files
from tf_dynidx.cli.bench.methods_page import page
from tf_dynidx.cli.compare import methods
from tf_dynidx.cli.compare.comparison import compare
from tf_dynidx.cli.compare.plan import Plan
from tf_dynidx.cli.compare.process import run_in_process
from tf_dynidx.cli.data import read_all, write_pairs, write_targets
from tf_dynidx.cli.docstrings import load_docstring_corpus
from tf_dynidx.cli.settings import Settings

_FILES = ("targets", "train", "test")


class Question(NamedTuple):
    """One comparison on one set.

    Attributes:
        name: of its folder.
        title: what is asked.
        miners: as for `tf-dynidx compare`.
        settings: dict of `Settings`, the budget among them.
    """

    name: str
    title: str
    miners: str
    settings: dict


class DataSet(NamedTuple):
    """Data, and what is asked of them.

    Attributes:
        name: of its folder.
        title: what it is called.
        about: what it is, where it comes from and how it is brought into form.
        settings: dict of `Settings` that all its comparisons have.
        questions: tuple of `Question`.
    """

    name: str
    title: str
    about: str
    settings: dict
    questions: tuple

    def comparisons(self):
        """list of (name, `Question`), such as "oewn/steps", which is also the folder."""
        return [(f"{self.name}/{question.name}", question) for question in self.questions]


_ORACLE = "How much of the oracle's gain does each have? After the same number of steps"
_CALLS = "At equal encoder calls: full encodes of all targets count as what they are, a call for each"
_CAPPED = "At equal encoder calls, of which a full encode takes half, as it does with many more targets"
_SECONDS = "At equal seconds, each with the batch that suits it"
# With a warm-up of as many examples as there are targets and without one. By default the index of sets
# of this size is flat: with `reads` it is a tree, as that of larger ones.
_CALLERS = (
    "tree,tree:warmup_examples=107525,tree:reads=192,in-batch,stale,stale:warmup_examples=107525,"
    "cache,cache:warmup_examples=107525,stochastic"
)
# The oracle's gain is asked for where every query draws, as in the paper: more than any batch has.
_ALL_DRAW = {"mining_queries": 4096}
_DOCSTRINGS = "docstrings"  # made from the packages that are installed

SETS = (
    DataSet(
        "oewn",
        "Open English WordNet",
        "A target is a synset, as `word word : definition`. A query is a synset in the same form, and "
        "its target the hypernym; or an example sentence, and its target the synset that it "
        "illustrates. Test queries are picked at random among all pairs. Made from a release of "
        "[Open English WordNet](https://github.com/globalwordnet/english-wordnet) (CC BY 4.0).",
        {},
        (
            Question("steps", _ORACLE, "tree,in-batch,exact", {"steps": 1000} | _ALL_DRAW),
            # A second negative a query is worth less than the steps that its calls make room for.
            Question("calls", _CALLS, _CALLERS, {"encoder_calls": 1_000_000, "negatives": 1}),
            # Two calls for each target.
            Question(
                "capped",
                _CAPPED,
                "tree,in-batch,stale,cache,stochastic",
                {"encoder_calls": 215_050, "batch": 64, "negatives": 1},
            ),
            Question(
                "seconds", _SECONDS, "tree,in-batch:batch=1024,stale,cache,exact", {"seconds": 120.0}
            ),
        ),
    ),
    DataSet(
        "amazon-cds",
        "Users and the CDs that they reviewed",
        "Ids alone. The split is that of [UltraGCN](https://github.com/xue-pai/UltraGCN), whose "
        "`train.txt` and `test.txt` hold a user and its items a line: users become queries `u0`, "
        "`u1`, ..., items targets `i0`, `i1`, ... with an empty text. A user's training items are left "
        "out of its ranking. UltraGCN's own figures on it are recall@20 .1622 and ndcg@20 .1043.",
        {"encoder": "id", "batch": 2048, "negatives": 1},
        (
            Question("steps", _ORACLE, "tree,in-batch,exact", {"steps": 600} | _ALL_DRAW),
            # A step spends its time on drawing here and not on encoding: let fewer queries draw, too.
            Question(
                "seconds",
                _SECONDS,
                "tree,tree:mining_queries=64,in-batch,stale,exact",
                {"seconds": 120.0},
            ),
        ),
    ),
    DataSet(
        _DOCSTRINGS,
        "Docstrings of the installed packages",
        "The data of `tf-dynidx demo`: functions and classes, and what their docstrings say of them. "
        "No test target has a training pair, hence `unlabelled_weight` 0. They differ with the "
        "packages that are installed.",
        {"unlabelled_weight": 0.0, "dropout": 0.1},
        (Question("seconds", _SECONDS, "tree,in-batch:batch=1024", {"seconds": 120.0}),),
    ),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """What the benchmark can be told.

    Attributes:
        data: folder with a folder for each set but the docstrings, each with targets, train and test
            as .jsonl or .jsonl.gz.
        output: folder for the comparisons.
        page: file for the page.
        seeds: how many.
        only: names of comparisons, such as "oewn/steps"; None: all.
    """

    data: str
    output: str
    page: str
    seeds: int = 3
    only: tuple | None = None


def names():
    """The names of all comparisons."""
    return tuple(name for each in SETS for name, _ in each.comparisons())


def bench_methods(options, run_one=run_in_process) -> int:
    """Runs the comparisons, or what is left of them, and writes the page.

    The page has every comparison that is done, whether now or before, in this folder or, if the page is
    there already, on it; what is left out is said there.

    Args:
        options: `Options`.
        run_one: as for `compare`.

    Returns:
        int, the exit status: 1 if any run has failed.

    Raises:
        ValueError: data are missing, or a folder is that of another comparison.
        KeyboardInterrupt: it was stopped; what has been done is kept.
    """
    files.check_writable_target(options.page, "file")
    wanted = names() if options.only is None else options.only
    asked = [
        (each, name, question)
        for each in SETS
        for name, question in each.comparisons()
        if name in wanted
    ]
    paths = {each.name: _paths(each, options) for each, _, _ in asked}
    status = 0
    for each, name, question in asked:
        print(f"{each.title}: {question.title}", flush=True)
        data = read_all(**paths[each.name])
        settings = Settings(**each.settings, **question.settings)
        plan = Plan.of(
            paths[each.name], data, methods.read(question.miners), settings, range(options.seeds)
        )
        status |= compare(plan, Path(options.output, name), run_one)
    there = Path(options.page)
    before = there.read_text(encoding="utf-8") if there.is_file() else ""
    files.write_bytes(options.page, page(SETS, options.output, before).encode())
    print(f"page: {options.page}")
    return status


def _paths(each, options):
    """The files of a set, by what is in them."""
    if each.name == _DOCSTRINGS:
        return _docstrings(Path(options.output, each.name, "data"))
    folder = Path(options.data, each.name)
    paths = {}
    for name in _FILES:
        known = [folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz"]
        found = [str(path) for path in known if path.is_file()]
        if not found:
            raise ValueError(
                f"{each.title}: no file {' or '.join(map(str, known))}. Fetch the data as "
                "docs/methods.md describes, or name other comparisons with --only."
            )
        paths[name] = found[0]
    return paths


def _docstrings(folder):
    """The files of the docstrings, written if they are not there."""
    paths = {name: str(folder / f"{name}.jsonl") for name in _FILES}
    if not all(Path(path).is_file() for path in paths.values()):
        corpus = load_docstring_corpus(progress=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_targets(paths["targets"], corpus.targets)
        write_pairs(paths["train"], corpus.train, corpus.targets)
        write_pairs(paths["test"], corpus.test, corpus.targets)
    return paths
