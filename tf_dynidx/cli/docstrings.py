"""The docstrings of installed packages as training data for a search over their code.

A target is a function, method or class: its qualified name, its arguments and the identifiers in
its body. A query is a piece of what its docstring says. The sources are parsed, never imported, so
that neither side effects nor missing libraries of what is read can do harm.

What decides the data:

- Symbols are those that an importer can reach: modules, classes in them and their methods, but not
  functions within functions. Where a module defines a name more than once, as with overloads and
  property setters, a definition with a docstring is preferred, then one with more identifiers.
- Symbols that differ in their module only are one target, under the first identifier in sorted
  order and with the first docstring in that order. Special methods without a docstring, such as
  most ``__repr__``, are one target across classes too.
- A docstring gives its first sentence (the *summary*), the rest of its prose by paragraphs and its
  argument descriptions, each a query of its own. The text is left as its author wrote it. A query
  that belongs to more than a few targets ("See base class.") says nothing and is dropped.
- A symbol belongs to one split, which a hash of its summary decides: the same on every machine, and
  the same for copies of a symbol whose docstrings have drifted apart below the summary.
"""

import ast
import contextlib
import gzip
import hashlib
import importlib.util
import itertools
import json
import os
import re
import sys
import sysconfig
import textwrap
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tf_dynidx.cli.data import DataError, Pairs, Targets

_PACKAGES = ("keras", "numpy", "scipy", "tensorflow")

# Increase when the same sources give another corpus, or the cache is written in another way.
_FORMAT = 1

_MAX_IDENTIFIERS = 40

_MIN_WORDS = 3
_MAX_WORDS = 64
_MAX_POSITIVES = 8
# Formulas, tables and code have fewer letters among their characters than prose.
_MIN_SHARE_OF_LETTERS = 0.6

_SPLITS = ("train", "held_out", "test")
_HELD_OUT_SHARE = 0.04
_TEST_SHARE = 0.06
_MAX_EVALUATED = 2_000


@dataclass(frozen=True, eq=False)  # eq=False: as for Pairs.
class DocstringCorpus:
    """Code as targets, and what its docstrings say as queries.

    Attributes:
        targets: In the order of their identifiers.
        train: Every piece of the docstrings that are trained on.
        held_out: Summaries to choose a model by.
        test: Summaries to report a model's quality by. No target is a positive of two splits.
    """

    targets: Targets
    train: Pairs
    held_out: Pairs
    test: Pairs


def load_docstring_corpus(
    cache_folder: Path | None = None,
    progress: bool = False,
    sources: Sequence[Path] | None = None,
) -> DocstringCorpus:
    """Reads the corpus from the cache, or makes it and caches it.

    A cached corpus is used as long as Python's version and the names and sizes of the source files
    are the same. A change that keeps every size is not noticed. Earlier corpora are not deleted.

    Args:
        cache_folder: Where corpora are kept; by default in the user's cache folder.
        progress: Whether to show a progress bar while sources are read.
        sources: Folders to read, each a package or a folder of modules and packages; by default
            ``installed_sources()``.

    Raises:
        DataError: If the sources hold no docstring to learn from.
    """
    sources = installed_sources() if sources is None else sources
    modules = list(_find_modules(sources))
    path = (cache_folder or _user_cache_folder()) / f"docstrings-{_fingerprint(modules)}.json.gz"

    corpus = _read_cache(path)
    if corpus is None:
        symbols = _read_symbols(modules, progress)
        corpus = _make_corpus(symbols)
        if not (corpus.train.queries or corpus.held_out.queries or corpus.test.queries):
            raise DataError(
                "No docstring was found to learn from. Received: "
                f"{len(modules):,} modules with {len(symbols):,} functions and classes in "
                f"{', '.join(map(str, sources)) or 'no folder'}. Install the packages with their "
                ".py files, docstrings included."
            )
        _write_cache(path, corpus)
    return corpus


def installed_sources() -> list[Path]:
    """The folders of Keras, NumPy, SciPy and TensorFlow, if installed, and the standard library."""
    folders = []
    for name in _PACKAGES:
        # Finding a name without a dot imports nothing.
        spec = importlib.util.find_spec(name)
        if spec is not None:
            folders += map(Path, spec.submodule_search_locations or ())
    return [*folders, Path(sysconfig.get_path("stdlib"))]


# From folders to symbols


@dataclass(frozen=True)
class _Module:
    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class _Symbol:
    """A function, method or class.

    Attributes:
        module: Its module's qualified name.
        name: Its qualified name within the module.
        identifiers: Those of its arguments and its body, in order of first appearance.
        docstring: As its author wrote it, without indentation; ``""`` if there is none.
    """

    module: str
    name: str
    identifiers: tuple[str, ...]
    docstring: str

    @property
    def identifier(self) -> str:
        return f"{self.module}.{self.name}"


def _find_modules(sources: Sequence[Path]) -> Iterator[_Module]:
    for source in map(Path.absolute, sources):
        is_package = (source / "__init__.py").exists()
        for folder, subfolders, files in os.walk(source):
            subfolders[:] = sorted(filter(_is_wanted, subfolders))
            parts = Path(folder).relative_to(source.parent if is_package else source).parts
            for file in sorted(files):
                stem, suffix = os.path.splitext(file)
                path = Path(folder, file)
                # A link may lead nowhere: distributions link into folders they do not install.
                if suffix == ".py" and _is_wanted(stem) and path.is_file():
                    name = ".".join(parts if stem == "__init__" else (*parts, stem))
                    yield _Module(name, path, path.stat().st_size)


def _is_wanted(name: str) -> bool:
    """Whether a module or folder of modules holds code of its own that one would search."""
    # Not importable: site-packages within the standard library, above all.
    if not name.isidentifier():
        return False
    # Re-exports that TensorFlow generates, copies of other projects, and C++ headers.
    if name in {"_api", "_vendor", "_vendored", "vendor", "extern", "third_party", "include"}:
        return False
    # Private modules such as scipy.stats._bws_test are statistical tests.
    return name.startswith("_") or not {"test", "tests"} & set(name.split("_"))


def _read_symbols(modules: Sequence[_Module], progress: bool = False) -> list[_Symbol]:
    """The symbols of the modules, sorted and unique by identifier.

    Modules that cannot be read or parsed (templates, code for another Python) are passed over.
    """
    symbols: dict[str, _Symbol] = {}
    with warnings.catch_warnings():
        # Doubtful escapes in what is read are of no interest to who reads it.
        warnings.simplefilter("ignore")
        for module in tqdm(modules, "Reading docstrings", unit="file", disable=not progress):
            try:
                tree = ast.parse(module.path.read_bytes())
                found = list(_symbols_in(tree, module.name))
            except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            for symbol in found:
                known = symbols.setdefault(symbol.identifier, symbol)
                if _completeness(symbol) > _completeness(known):
                    symbols[symbol.identifier] = symbol
    return [symbols[identifier] for identifier in sorted(symbols)]


def _completeness(symbol: _Symbol) -> tuple[bool, int]:
    return bool(symbol.docstring), len(symbol.identifiers)


def _symbols_in(scope: ast.AST, module: str, prefix: str = "") -> Iterator[_Symbol]:
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.ClassDef):
            identifiers = _class_identifiers(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            identifiers = _function_identifiers(node)
        elif isinstance(node, ast.stmt | ast.ExceptHandler | ast.match_case):
            # Definitions under a condition, such as a fallback for an import that fails.
            yield from _symbols_in(node, module, prefix)
            continue
        else:
            continue
        name = prefix + node.name
        yield _Symbol(module, name, _distinct(identifiers), ast.get_docstring(node) or "")
        if isinstance(node, ast.ClassDef):
            yield from _symbols_in(node, module, f"{name}.")


def _distinct(identifiers: Iterable[str]) -> tuple[str, ...]:
    """The first identifiers without repeats and without those that every method has."""
    found = dict.fromkeys(("self", "cls", "super", "_"))
    uninformative = len(found)
    for identifier in identifiers:
        found[identifier] = None
        if len(found) == _MAX_IDENTIFIERS + uninformative:
            break
    return tuple(found)[uninformative:]


def _function_identifiers(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    yield from _argument_names(node)
    for statement in node.body:
        yield from _identifiers(statement)


def _class_identifiers(node: ast.ClassDef) -> Iterator[str]:
    for base in node.bases:
        yield from _identifiers(base)
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            if statement.name == "__init__":
                yield from _argument_names(statement)
            else:
                yield statement.name
        elif isinstance(statement, ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                yield from _identifiers(target)
        elif isinstance(statement, ast.AnnAssign):
            yield from _identifiers(statement.target)


def _argument_names(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    names = node.args
    arguments = [*names.posonlyargs, *names.args, names.vararg, *names.kwonlyargs, names.kwarg]
    return (argument.arg for argument in arguments if argument is not None)


def _identifiers(node: ast.AST) -> Iterator[str]:
    """Names, attributes and keywords in the order in which the source has them."""
    # Not recursive: expressions can be nested deeper than Python calls.
    pending: list[ast.AST | str] = [node]
    while pending:
        node = pending.pop()
        if isinstance(node, str):
            yield node
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            pending += (node.attr, node.value)
        elif isinstance(node, ast.arg):
            yield node.arg
        else:
            if isinstance(node, ast.keyword) and node.arg is not None:
                yield node.arg
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name
            pending += reversed(list(ast.iter_child_nodes(node)))


# From symbols to a corpus


def _make_corpus(symbols: Sequence[_Symbol]) -> DocstringCorpus:
    merged: dict[tuple, _Symbol] = {}
    docstrings: dict[tuple, str] = {}
    for symbol in symbols:
        key = _identity(symbol)
        merged.setdefault(key, symbol)
        docstrings[key] = docstrings.get(key) or symbol.docstring

    # The rows that each query belongs to, by split. Evaluation asks what a user would: summaries.
    rows_of: dict[str, dict[str, list[int]]] = {split: {} for split in _SPLITS}
    frequency: Counter[str] = Counter()
    for row, docstring in enumerate(docstrings.values()):
        summary, *further = _queries(docstring)
        queries = list(dict.fromkeys(filter(_is_query, (summary, *further))))
        frequency.update(queries)
        split = _split(summary or docstring)
        for query in queries:
            if split == "train" or query == summary:
                rows_of[split].setdefault(query, []).append(row)

    for split, rows in rows_of.items():
        rows_of[split] = {query: rows[query] for query in rows if frequency[query] <= _MAX_POSITIVES}
    # Another symbol may say, further down, what is the summary of one that is held out.
    for query in rows_of["held_out"] | rows_of["test"]:
        rows_of["train"].pop(query, None)

    return DocstringCorpus(
        Targets(
            [symbol.identifier for symbol in merged.values()],
            [" ".join((symbol.identifier, *symbol.identifiers)) for symbol in merged.values()],
        ),
        train=_pairs(rows_of["train"]),
        held_out=_pairs(_sample(rows_of["held_out"])),
        test=_pairs(_sample(rows_of["test"])),
    )


def _identity(symbol: _Symbol) -> tuple:
    """What symbols that are one target have in common."""
    name = symbol.name
    if not symbol.docstring and name.endswith("__"):
        name = name.rpartition(".")[2]
    return name, symbol.identifiers


def _split(summary: str) -> str:
    position = _hash(summary.casefold())
    if position < _TEST_SHARE:
        return "test"
    return "held_out" if position < _TEST_SHARE + _HELD_OUT_SHARE else "train"


def _sample(rows: dict[str, list[int]]) -> dict[str, list[int]]:
    return {query: rows[query] for query in sorted(rows, key=_hash)[:_MAX_EVALUATED]}


def _hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def _pairs(rows: dict[str, list[int]]) -> Pairs:
    return Pairs(list(rows), [np.array(positives, np.int32) for positives in rows.values()])


# From a docstring to queries

_PROSE = {"", "caution", "description", "details", "note", "notes", "warning", "warnings"}
_ARGUMENTS = {
    "args",
    "arguments",
    "attributes",
    "call arguments",
    "keyword args",
    "keyword arguments",
    "other parameters",
    "parameters",
}

_UNDERLINE = re.compile(r"([-=~^*])\1{2,}")
_TITLE = re.compile(r"[A-Z]\w{2,}(?: \w+){0,2}:")

_ITEM = r"(?:[-*+]|\d+[.)]) +"
_PARAGRAPH_END = re.compile(rf"\n\n+|\n(?={_ITEM})")
_NO_PROSE = re.compile(r"\s|\.\. |[:@|#<]|[-+=]{2}|[\w.]+\(.*\)(?: *->.*)?$", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)\s+(?=[A-Z`\"'(])")

_WORD = re.compile(r"(?<!\S)\W*[^\W\d_]{2}")
_NAMES = r"(?:[-*] +)?`*(\*{0,2}\w+(?:, *\*{0,2}\w+)*)`*"
_ARGUMENT = re.compile(rf"{_NAMES}(?: +:.*$|$| *(?:\([^)]*\))?:)")


def _queries(docstring: str) -> list[str]:
    """The summary, ``""`` if there is none, then the further pieces, each on one line."""
    opening: list[str] = []
    further: list[str] = []
    for title, text in _sections(_without_code(docstring)):
        if title in _ARGUMENTS:
            further += _arguments(text)
        elif title in _PROSE:
            (further if title else opening).extend(_paragraphs(text))
    summary, *rest = _SENTENCE_END.split(opening[0], maxsplit=1) if opening else [""]
    # What ends in a colon leads to code that is not part of the query.
    further = [piece for piece in (*rest, *opening[1:], *further) if not piece.endswith(":")]
    return [" ".join(piece.split()[:_MAX_WORDS]) for piece in (summary, *further)]


def _is_query(text: str) -> bool:
    return len(_WORD.findall(text)) >= _MIN_WORDS


def _without_code(docstring: str) -> list[str]:
    """The lines, with empty ones in the place of fenced code and interpreter sessions."""
    lines = []
    fenced = session = False
    for line in docstring.expandtabs().splitlines():
        start = line.lstrip()
        session = start.startswith(">>>") or (session and bool(start))
        is_fence = start.startswith(("```", "~~~"))
        fenced ^= is_fence
        lines.append("" if fenced or is_fence or session else line)
    return lines


def _sections(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yields the title, in lower case and ``""`` for the opening, and the text of each section.

    A title is underlined (numpydoc), or ends in a colon and has its section indented (Google).
    """
    title = ""
    indented = False
    section: list[str] = []
    for line, following in itertools.zip_longest(lines, lines[1:], fillvalue=""):
        if _UNDERLINE.fullmatch(line.strip()):
            continue
        underlined = bool(line.strip() and _UNDERLINE.fullmatch(following.strip()))
        if underlined or (_TITLE.fullmatch(line.rstrip()) and following.startswith(" ")):
            yield title, _dedented(section)
            title, indented, section = line.strip().rstrip(":").lower(), not underlined, []
        elif indented and line and not line.startswith(" "):
            yield title, _dedented(section)
            title, indented, section = "", False, [line]
        else:
            section.append(line)
    yield title, _dedented(section)


def _dedented(lines: Sequence[str]) -> str:
    return textwrap.dedent("\n".join(lines)).strip("\n")


def _paragraphs(text: str) -> Iterator[str]:
    """Yields prose and list items; not what is indented (mostly code), nor markup and calls."""
    for paragraph in _PARAGRAPH_END.split(text):
        paragraph = re.sub(rf"^{_ITEM}", "", paragraph)
        characters = "".join(paragraph.split())
        letters = sum(map(str.isalpha, characters))
        if letters > _MIN_SHARE_OF_LETTERS * len(characters) and not _NO_PROSE.match(paragraph):
            yield paragraph


def _arguments(text: str) -> Iterator[str]:
    """Yields ``name: description`` for each argument, without its type."""
    for item in re.split(r"\n(?=\S)", text):
        head, *lines = item.partition("\n\n")[0].split("\n")
        argument = _ARGUMENT.match(head)
        if argument is not None:
            description = " ".join((head[argument.end() :], *lines))
            if _is_query(description):
                yield f"{argument[1]}: {description}"


# The cache


def _user_cache_folder() -> Path:
    if sys.platform == "win32":
        folder = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Caches"
    else:
        folder = Path.home() / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or folder, "tf-dynidx")


def _fingerprint(modules: Iterable[_Module]) -> str:
    # Names and sizes tell versions apart, also of packages with several distributions, such as
    # tensorflow-cpu, and environments that hold the same versions share a corpus.
    content = [(module.name, module.size) for module in modules]
    key = json.dumps([_FORMAT, sys.version_info[:3], content])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _read_cache(path: Path) -> DocstringCorpus | None:
    """The corpus, or None if there is none or it cannot be read."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            content = json.load(file)
        return DocstringCorpus(
            Targets(content["identifiers"], content["texts"]),
            *(_pairs(dict(content[split])) for split in _SPLITS),
        )
    # gzip's checksum tells damage from content, so that what parses is what was written.
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError):
        return None


def _write_cache(path: Path, corpus: DocstringCorpus) -> None:
    content: dict[str, list] = {
        "identifiers": corpus.targets.identifiers,
        "texts": corpus.targets.texts,
    }
    for split in _SPLITS:
        pairs = getattr(corpus, split)
        positives = [rows.tolist() for rows in pairs.positives]
        content[split] = list(zip(pairs.queries, positives, strict=True))

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(gzip.compress(json.dumps(content).encode(), compresslevel=4))
        os.replace(temporary, path)
    except OSError as error:
        warnings.warn(
            f"The corpus is not cached and will be read again next time: {error}", stacklevel=3
        )
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
