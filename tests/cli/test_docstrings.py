import gzip
import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from tf_dynidx.cli import docstrings
from tf_dynidx.cli.data import DataError
from tf_dynidx.cli.docstrings import installed_sources, load_docstring_corpus

SPLITS = ("train", "held_out", "test")


@pytest.fixture
def load(tmp_path):
    """Writes the modules of a package ``shop`` and loads their corpus, with a cache of its own."""

    def load(modules):
        package = tmp_path / "shop"
        for name, source in {"__init__.py": "", **modules}.items():
            path = package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
        return load_docstring_corpus(tmp_path / "cache", sources=[package])

    return load


@pytest.fixture
def everything_trains(monkeypatch):
    """So that a test of what becomes a query need not know where its hash puts it."""
    monkeypatch.setattr(docstrings, "_TEST_SHARE", 0)
    monkeypatch.setattr(docstrings, "_HELD_OUT_SHARE", 0)


def function(name, docstring, body="pass"):
    indented = docstring.replace("\n", "\n    ")
    return f"def {name}():\n    '''{indented}'''\n    {body}\n"


def queries_of(load, docstring):
    corpus = load({"module.py": "class Any:\n    pass\n" + function("f", docstring)})
    return corpus.train.queries


def positives(corpus, split="train"):
    """The identifiers that each query of a split has."""
    pairs = getattr(corpus, split)
    return {
        query: [corpus.targets.identifiers[row] for row in rows]
        for query, rows in zip(pairs.queries, pairs.positives, strict=True)
    }


def text_of(corpus, identifier):
    return corpus.targets.texts[corpus.targets.rows[identifier]]


# Which symbols are targets


def test_functions_methods_and_classes_are_targets_with_or_without_docstring(load):
    corpus = load(
        {
            "__init__.py": "def open_shop(): pass\n",
            "till/drawer.py": "class Drawer:\n"
            "    async def pay(self): pass\n"
            "    class Coin:\n"
            "        def toss(self): 'Tosses this one coin.'\n",
        }
    )
    assert corpus.targets.identifiers == [
        "shop.open_shop",
        "shop.till.drawer.Drawer",
        "shop.till.drawer.Drawer.Coin",
        "shop.till.drawer.Drawer.Coin.toss",
        "shop.till.drawer.Drawer.pay",
    ]


def test_definitions_under_conditions_count_and_those_in_functions_do_not(load):
    corpus = load(
        {
            "module.py": "try:\n    import fast\n"
            "except ImportError:\n    def slow(): 'Sells it slowly.'\n"
            "if True:\n    def sell():\n        def inner(): pass\n        class Inner: pass\n"
        }
    )
    assert corpus.targets.identifiers == ["shop.module.sell", "shop.module.slow"]


def test_folders_without_init_hold_top_level_modules(tmp_path):
    (tmp_path / "lib" / "site-packages" / "other").mkdir(parents=True)
    (tmp_path / "lib" / "site-packages" / "other" / "a.py").write_text("def f(): 'Not in here.'")
    (tmp_path / "lib" / "queue.py").write_text("def put(): 'Puts an item in.'")
    corpus = load_docstring_corpus(tmp_path / "cache", sources=[tmp_path / "lib"])
    assert corpus.targets.identifiers == ["queue.put"]


@pytest.mark.parametrize(
    "name",
    ["tests/a.py", "kernel_tests/a.py", "test_a.py", "a_test.py", "_vendor/a.py", "_api/v2/a.py"],
)
def test_tests_copies_and_generated_exports_are_passed_over(load, name):
    corpus = load({name: "def f(): pass\n", "a.py": "def kept(): 'This one is kept.'\n"})
    assert corpus.targets.identifiers == ["shop.a.kept"]


def test_words_that_only_resemble_tests_are_kept(load):
    source = "def f(): 'Compares two whole samples.'\n"
    corpus = load({"_bws_test.py": source + "1", "testing.py": source, "contest.py": "def g(): 1"})
    assert corpus.targets.identifiers == ["shop._bws_test.f", "shop.contest.g"]


def test_files_that_do_not_parse_are_passed_over(load, tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "latin.py").write_bytes(b"x = '\xe4'\ndef f(): 'Not in UTF-8 here.'")
    (tmp_path / "shop" / "gone.py").symlink_to(tmp_path / "nowhere.py")
    corpus = load(
        {
            "template.py": "def {{ name }}(): pass\n",
            "null.py": "def g(): pass\0",
            "deep.py": "-" * 100_000 + "1",
            "a.py": "def kept(): 'This one is kept.'\n",
        }
    )
    assert corpus.targets.identifiers == ["shop.a.kept"]


def test_nothing_that_is_read_is_imported(load, tmp_path):
    marker = tmp_path / "imported"
    load({"module.py": f"open({str(marker)!r}, 'w')\ndef f(): 'Says three words.'\n"})
    assert not marker.exists()
    assert not any(name.split(".")[0] == "shop" for name in sys.modules)


def test_of_several_definitions_the_documented_one_stands(load, everything_trains):
    corpus = load(
        {
            "module.py": "class Till:\n"
            "    @property\n    def total(self):\n        'Sum of all payments.'\n"
            "        return self._total\n"
            "    @total.setter\n    def total(self, value):\n"
            "        self.check(value); self._total = value\n"
            "@overload\ndef pay(amount: int): ...\n"
            "def pay(amount): return amount.coins\n"
        }
    )
    assert text_of(corpus, "shop.module.Till.total") == "shop.module.Till.total _total"
    assert text_of(corpus, "shop.module.pay") == "shop.module.pay amount coins"
    assert positives(corpus) == {"Sum of all payments.": ["shop.module.Till.total"]}


# Texts


def test_text_of_a_function_is_its_name_arguments_and_identifiers(load):
    corpus = load(
        {
            "module.py": "def pay(self, amount: int, /, *coins, note='x', **more) -> None:\n"
            "    '''Pays what is due.'''\n"
            "    till = self.shop.openTill(amount, key='secret')\n"
            "    return till.count(amount) + [c for c in coins if c.real]\n"
        }
    )
    assert text_of(corpus, "shop.module.pay") == (
        "shop.module.pay amount coins note more till shop openTill key count c real"
    )


def test_text_of_a_class_is_its_bases_arguments_attributes_and_methods(load):
    corpus = load(
        {
            "module.py": "class Till(base.Drawer, metaclass=Meta):\n"
            "    '''Keeps all the money.'''\n"
            "    coins = 3\n    notes: int = 4\n"
            "    def __init__(self, owner): self.hidden = owner\n"
            "    def count(self, by): return by.value\n"
        }
    )
    assert text_of(corpus, "shop.module.Till") == (
        "shop.module.Till base Drawer coins notes owner count"
    )


def test_texts_have_at_most_forty_identifiers(load):
    body = "; ".join(f"name_{i}" for i in range(100))
    corpus = load({"module.py": function("f", "Says three words.", body)})
    expected = " ".join(["shop.module.f", *(f"name_{i}" for i in range(40))])
    assert corpus.targets.texts == [expected]


def test_symbols_that_differ_in_their_module_only_are_one_target(load, everything_trains):
    source = "def sell(price): return price.{}\n"
    corpus = load(
        {
            "b.py": source.format("tax") + "'Only a comment.'\n",
            "c.py": "def sell(price):\n    'Sells for a price.'\n    return price.tax\n",
            "d.py": "def sell(price):\n    'Not the first.'\n    return price.tax\n",
            "e.py": source.format("duty"),
        }
    )
    assert corpus.targets.identifiers == ["shop.b.sell", "shop.e.sell"]
    assert positives(corpus) == {"Sells for a price.": ["shop.b.sell"]}


def test_special_methods_are_one_target_across_classes_unless_documented(load):
    method = "    def __repr__(self):\n        {}return self.name\n"
    corpus = load(
        {
            "module.py": "class A:\n" + method.format("") + "class B:\n" + method.format("") + "class "
            "C:\n" + method.format("'Shows the name only.'\n        ")
        }
    )
    special = [name for name in corpus.targets.identifiers if name.endswith("__")]
    assert special == ["shop.module.A.__repr__", "shop.module.C.__repr__"]


# Queries


def test_a_docstring_gives_its_summary_then_its_paragraphs(load, everything_trains):
    docstring = (
        "Sells one item, e.g. An apple,\n  over the counter. It is then gone.\n\n"
        "Stock is not\nchecked here.\n\nNote:\n  Prices are rounded up.\n"
    )
    assert queries_of(load, docstring) == [
        "Sells one item, e.g. An apple, over the counter.",
        "It is then gone.",
        "Stock is not checked here.",
        "Prices are rounded up.",
    ]


def test_list_items_are_queries_of_their_own(load, everything_trains):
    docstring = "- Sells one item only,\n  whatever it costs.\n- Takes an item back."
    assert queries_of(load, docstring) == [
        "Sells one item only, whatever it costs.",
        "Takes an item back.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        ">>> sell the big apple\ngone and not back\n",
        "```python\nsell the big apple\n\nand the small one\n```",
        "Sell the apple like this::\n\n    sell the big apple",
        ".. note:: sell the big apple\n   and the small one",
        "Examples\n--------\nSell the big apple.",
        "Returns:\n  The price of an apple.",
        "=====  =====\nbig    small\n=====  =====",
        "x = a * (b + c) / 2 ** (d - 1) * some",
        "sell(the, big, apple) -> price",
    ],
)
def test_code_markup_and_other_sections_are_no_queries(load, everything_trains, text):
    docstring = f"Sells one item.\n\n{text}\n"
    assert queries_of(load, docstring) == ["Sells one item."]


def test_a_call_signature_is_not_taken_for_the_summary(load, everything_trains):
    assert queries_of(load, "f(x[, y]) -> price\n\nSells one item.") == ["Sells one item."]


@pytest.mark.parametrize(
    "section",
    [
        "Args:\n  price: What the buyer\n    pays for it.\n  *rest, when: Hours (24) of opening.\n",
        "Parameters\n----------\nprice : float, optional\n    What the buyer\n    pays for it.\n\n"
        "    Never mind this part.\n*rest, when\n    Hours (24) of opening.\n",
        "Attributes:\n  price (float): What the buyer pays for it.\n"
        "  `*rest, when`: Hours (24) of opening.\n",
    ],
)
def test_argument_descriptions_carry_their_name(load, everything_trains, section):
    docstring = f"Sells one item.\n\n{section}\nReturns:\n  nothing: At all of note.\n"
    assert queries_of(load, docstring) == [
        "Sells one item.",
        "price: What the buyer pays for it.",
        "*rest, when: Hours (24) of opening.",
    ]


def test_queries_have_at_least_three_words_and_are_cut_at_sixty_four(load, everything_trains):
    many = " ".join(["word"] * 100)
    docstring = f"Do it.\n\na + b equals c.\n\n{many}\n\nArgs:\n  x: An int."
    assert queries_of(load, docstring) == [" ".join(["word"] * 64)]


def test_a_docstring_of_several_symbols_is_one_query(load, everything_trains):
    corpus = load(
        {"module.py": "".join(function(name, "Sells one item.", name) for name in ("a", "b"))}
    )
    assert positives(corpus) == {"Sells one item.": ["shop.module.a", "shop.module.b"]}
    assert corpus.train.positives[0].dtype == np.int32


@pytest.mark.parametrize(("symbols", "kept"), [(8, True), (9, False)])
def test_what_more_than_eight_symbols_say_is_no_query(load, everything_trains, symbols, kept):
    functions = [function(f"f{i}", "See the base class.", f"x{i}") for i in range(symbols)]
    corpus = load({"module.py": "".join(functions) + function("g", "Sells one item.")})
    assert ("See the base class." in corpus.train.queries) == kept
    assert "Sells one item." in corpus.train.queries


# Splits


@pytest.fixture
def many():
    """Modules with 600 documented functions, some of which share what they say."""
    functions = [
        function(
            f"f{i}",
            f"Sells item number_{i // 2} gladly.\n\nFurther words on f{i}.\n\n"
            f"Sells item number_{i} gladly.",
            f"x{i}",
        )
        for i in range(600)
    ]
    return {"module.py": "".join(functions)}


def test_a_symbol_is_in_one_split_with_all_that_it_says(load, many):
    corpus = load(many)
    found = {
        split: {name for names in positives(corpus, split).values() for name in names}
        for split in SPLITS
    }
    assert all(found.values())
    assert sum(map(len, found.values())) == len(set.union(*found.values()))
    for i in range(0, 600, 2):
        pair = {f"shop.module.f{i}", f"shop.module.f{i + 1}"}
        assert any(pair <= names for names in found.values())
    assert 0.8 < len(found["train"]) / 600 < 0.97


def test_no_query_is_in_two_splits_and_only_summaries_are_held_out(load, many):
    corpus = load(many)
    queries = [query for split in SPLITS for query in getattr(corpus, split).queries]
    assert len(queries) == len(set(queries))
    for split in ("held_out", "test"):
        assert all(query.startswith("Sells") for query in getattr(corpus, split).queries)
        for query, names in positives(corpus, split).items():
            number = int(query.split("_")[1].split()[0])
            assert names == [f"shop.module.f{i}" for i in (2 * number, 2 * number + 1)]


def test_the_split_is_the_same_in_every_process(load, many):
    corpus = load(many)
    for number in range(300):
        summary = f"Sells item number_{number} gladly."
        share = int(hashlib.sha256(summary.lower().encode()).hexdigest()[:8], 16) / 16**8
        split = "test" if share < 0.06 else "held_out" if share < 0.1 else "train"
        assert summary in getattr(corpus, split).queries


def test_the_split_of_a_symbol_does_not_depend_on_the_others(load, many):
    before = load(many)
    after = load({**many, "more.py": function("a", "Buys one item.")})
    for split in SPLITS:
        names = positives(before, split)
        assert names.items() <= positives(after, split).items()


def test_evaluation_is_capped(load, many, monkeypatch):
    before = load(many)
    monkeypatch.setattr(docstrings, "_MAX_EVALUATED", 3)
    after = load({**many, "__init__.py": "# Another corpus.\n"})
    assert len(before.test.queries) > len(after.test.queries) == len(after.held_out.queries) == 3
    assert after.test.queries == before.test.queries[:3]
    assert after.train.queries == before.train.queries


# The cache and its failures


def as_lists(corpus):
    pairs = [getattr(corpus, split) for split in SPLITS]
    rows = [[rows.tolist() for rows in pair.positives] for pair in pairs]
    return corpus.targets, [pair.queries for pair in pairs], rows


@pytest.fixture
def forbid_reading(monkeypatch):
    def forbid():
        def refuse(*args):
            raise AssertionError("the sources were read again")

        monkeypatch.setattr(docstrings, "_read_symbols", refuse)

    return forbid


def test_a_cached_corpus_is_the_same_and_reads_no_source(load, many, forbid_reading):
    made = load(many)
    forbid_reading()
    cached = load(many)
    assert as_lists(cached) == as_lists(made)
    assert cached.test.positives[0].dtype == np.int32


def test_the_same_sources_give_the_same_corpus_elsewhere(load, many, tmp_path):
    here = load(many)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "shop").rename(tmp_path / "elsewhere" / "shop")
    there = load_docstring_corpus(tmp_path / "other cache", sources=[tmp_path / "elsewhere" / "shop"])
    assert as_lists(there) == as_lists(here)


def test_changed_sources_are_read_again(load):
    load({"module.py": function("f", "Sells one item.")})
    corpus = load({"module.py": function("f_new", "Sells one item.")})
    assert corpus.targets.identifiers == ["shop.module.f_new"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"not gzip",
        lambda content: content[:40] + bytes([content[40] ^ 255]) + content[41:],
        lambda content: gzip.compress(b"not JSON"),
        lambda content: gzip.compress(b"[]"),
        lambda content: gzip.compress(b"{}"),
    ],
    ids=["empty", "cut", "not gzip", "flipped", "not JSON", "a list", "no keys"],
)
def test_a_damaged_cache_is_made_again(load, many, tmp_path, forbid_reading, damage):
    made = load(many)
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert as_lists(load(many)) == as_lists(made)
    # Nothing but the file is left, and it serves.
    assert list((tmp_path / "cache").iterdir()) == [file]
    forbid_reading()
    assert as_lists(load(many)) == as_lists(made)


def test_an_unwritable_cache_is_a_warning(load, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.warns(UserWarning, match="not cached"):
        corpus = load({"module.py": function("f", "Sells one item.")})
    assert corpus.targets.identifiers == ["shop.module.f"]


def test_the_cache_is_in_the_folder_of_the_user(tmp_path, monkeypatch):
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").write_text(function("f", "Sells one item."))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_docstring_corpus(sources=[package])
    assert len(list((tmp_path / "xdg" / "tf-dynidx").iterdir())) == 1


@pytest.mark.parametrize(
    ("platform", "folder"),
    [
        ("linux", ".cache/tf-dynidx"),
        ("darwin", "Library/Caches/tf-dynidx"),
        ("win32", "AppData/Local/tf-dynidx"),
    ],
)
def test_each_platform_has_its_cache_folder(monkeypatch, platform, folder):
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    assert docstrings._user_cache_folder() == Path.home() / folder


def test_sources_without_docstrings_are_refused_and_not_cached(load, tmp_path):
    with pytest.raises(DataError) as caught:
        load({"module.py": "def f(): pass\n"})
    message = str(caught.value)
    assert "Received: 2 modules with 1 functions and classes" in message
    assert str(tmp_path / "shop") in message
    assert message.endswith("Install the packages with their .py files, docstrings included.")
    assert not (tmp_path / "cache").exists()


def test_progress_is_shown_when_asked_for(tmp_path, capsys):
    (tmp_path / "module.py").write_text(function("f", "Sells one item."))
    load_docstring_corpus(tmp_path / "quiet", sources=[tmp_path])
    assert capsys.readouterr().err == ""
    load_docstring_corpus(tmp_path / "shown", progress=True, sources=[tmp_path])
    assert "file/s" in capsys.readouterr().err


def test_installed_packages_and_the_standard_library_are_sources():
    folders = installed_sources()
    assert {"keras", "numpy", "scipy", "tensorflow"} <= {folder.name for folder in folders}
    assert (folders[-1] / "queue.py").exists()
