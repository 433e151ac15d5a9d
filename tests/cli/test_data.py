import gzip
import json
import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_dynidx.cli.data import DataError, Pairs, Targets, digest, read_pairs, read_targets


@pytest.fixture
def write(tmp_path):
    """Writes lines (objects, or text as it is) to a file and returns its path."""

    def write(*lines, name="data.jsonl"):
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return path

    return write


@pytest.fixture
def targets():
    return Targets(identifiers=["a", "b", "Grüße"], texts=["first", "second", "third"])


def assert_refused(read, path, *parts, line=None):
    """The refusal names the file and the line, then what was received, then what to do."""
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: " if line is None else f"{path}, line {line}: ")
    problem, received = message.split(". Received: ")
    assert ". " in received and received.endswith((".", "?"))
    for part in parts:
        assert part in message


# What is read


def test_targets_keep_their_order_and_empty_texts(write):
    path = write({"id": "b", "text": "second"}, {"id": "a", "text": ""})
    targets = read_targets(path)
    assert targets.identifiers == ["b", "a"]
    assert targets.texts == ["second", ""]
    assert targets.rows == {"b": 0, "a": 1}


def test_pairs_hold_rows_of_one_or_several_positives(write, targets):
    path = write({"query": "x", "target": "b"}, {"query": "x", "targets": ["Grüße", "a"]})
    pairs = read_pairs(path, targets)
    assert pairs.queries == ["x", "x"]
    assert [rows.tolist() for rows in pairs.positives] == [[1], [2, 0]]
    assert all(rows.dtype == np.int32 for rows in pairs.positives)


def test_identifiers_repeated_in_a_pair_count_once(write, targets):
    path = write({"query": "x", "targets": ["b", "a", "b"]})
    assert read_pairs(path, targets).positives[0].tolist() == [1, 0]


def test_other_keys_and_blank_lines_are_ignored(write):
    path = write("", {"id": "a", "text": "x", "id_": 1, "note": None}, "  \t", "")
    assert read_targets(path).identifiers == ["a"]


def test_byte_order_mark_and_windows_line_ends_are_no_data(tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a", "text": "x"}\r\n\r\n{"id": "b", "text": "y"}')
    assert read_targets(path) == Targets(["a", "b"], ["x", "y"])


def test_line_separators_inside_a_string_do_not_end_the_line(tmp_path):
    path = tmp_path / "separators.jsonl"
    path.write_text('{"id": "a", "text": "one\u2028two\x85three"}\n', encoding="utf-8")
    assert read_targets(path).texts == ["one\u2028two\x85three"]


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.jsonl"])
def test_gzip_is_recognised_by_content(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b'{"id": "a", "text": "x"}\n'))
    assert read_targets(path).identifiers == ["a"]


def test_plain_text_named_as_gzip_is_read(write):
    assert read_targets(write({"id": "a", "text": "x"}, name="data.gz")).identifiers == ["a"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a POSIX feature")
def test_pipe_is_read(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    contents = gzip.compress(b'{"id": "a", "text": "x"}\n')
    writer = threading.Thread(target=path.write_bytes, args=(contents,), daemon=True)
    writer.start()
    assert read_targets(path).identifiers == ["a"]
    writer.join()


texts = st.text(max_size=20)
corpora = st.dictionaries(st.text(min_size=1, max_size=8), texts, min_size=1, max_size=12)
writings = st.fixed_dictionaries(
    {"ensure_ascii": st.booleans(), "zipped": st.booleans(), "blank_lines": st.booleans()}
)


def encoded(records, ensure_ascii, zipped, blank_lines):
    end = "\n \n" if blank_lines else "\n"
    text = "".join(json.dumps(record, ensure_ascii=ensure_ascii) + end for record in records)
    return gzip.compress(text.encode()) if zipped else text.encode()


@settings(deadline=None)
@given(data=st.data(), corpus=corpora, writing=writings)
def test_what_is_written_is_read_back(data, corpus, writing):
    identifiers = list(corpus)
    chosen = st.lists(st.sampled_from(identifiers), min_size=1, max_size=5)
    pairs = data.draw(st.lists(st.tuples(texts, chosen), min_size=1, max_size=8))

    with tempfile.TemporaryDirectory() as folder:
        target_file, pair_file = Path(folder, "targets"), Path(folder, "pairs")
        target_file.write_bytes(
            encoded([{"id": key, "text": text} for key, text in corpus.items()], **writing)
        )
        pair_file.write_bytes(
            encoded(
                [
                    {"query": query, "target": ids[0]}
                    if len(ids) == 1
                    else {"query": query, "targets": ids}
                    for query, ids in pairs
                ],
                **writing,
            )
        )
        read = read_targets(target_file)
        read_back = read_pairs(pair_file, read)

    assert read == Targets(identifiers, list(corpus.values()))
    assert read_back.queries == [query for query, _ in pairs]
    for rows, (_, ids) in zip(read_back.positives, pairs, strict=True):
        named = [identifiers[row] for row in rows]
        assert len(named) == len(set(named))
        assert set(named) == set(ids)


# Files that are refused


def test_missing_file_is_refused(tmp_path):
    assert_refused(read_targets, tmp_path / "none.jsonl", "no such file", "Check the path")


def test_directory_is_refused(tmp_path):
    assert_refused(read_targets, tmp_path, "this is a directory", "Name one file in it")


def test_unreadable_file_is_refused(write, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    path = write({"id": "a", "text": "x"})
    monkeypatch.setattr("builtins.open", denied)
    assert_refused(read_targets, path, "cannot be read", "Permission denied", "permissions")


@pytest.mark.parametrize("kept", [5, 500])
def test_truncated_gzip_is_refused(tmp_path, kept):
    path = tmp_path / "data.jsonl.gz"
    numbers = np.random.default_rng(0).integers(10**9, size=500)
    lines = "".join(f'{{"id": "{i}", "text": "{n}"}}\n' for i, n in enumerate(numbers))
    path.write_bytes(gzip.compress(lines.encode())[:kept])
    assert_refused(read_targets, path, "gzip", "whole lines", "compress the file again")


def test_damaged_gzip_is_refused(tmp_path):
    path = tmp_path / "data.jsonl.gz"
    contents = bytearray(gzip.compress(b'{"id": "a", "text": "x"}\n' * 50))
    contents[10:20] = b"\xff" * 10
    path.write_bytes(contents)
    assert_refused(read_targets, path, "gzip", "damaged")


@pytest.mark.parametrize("contents", [b"", b"\n \n", gzip.compress(b"", mtime=0)])
def test_corpus_without_targets_is_refused(tmp_path, contents):
    path = tmp_path / "data.jsonl"
    path.write_bytes(contents)
    assert_refused(read_targets, path, "no targets", '{"id": ..., "text": ...}')


def test_file_without_pairs_is_refused(write, targets):
    path = write("", "")
    assert_refused(lambda p: read_pairs(p, targets), path, "no pairs", '{"query": ..., "target"')


# Lines that are refused


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    path = tmp_path / "latin1.jsonl"
    path.write_bytes(b'{"id": "a", "text": "x"}\n{"id": "b", "text": "caf\xe9"}\n')
    assert_refused(read_targets, path, "byte 25", "not UTF-8", r"\xe9", "Save the file", line=2)


@pytest.mark.parametrize(
    "text", ["id,text", '{"id": "a"', "{'id': 'a'}", "[" * 10_000, '{"id": ' + "1" * 5_000 + "}"]
)
def test_line_that_is_not_json_is_refused(write, text):
    path = write({"id": "a", "text": "x"}, "", text)
    assert_refused(read_targets, path, "not JSON", text[:60], "one JSON object a line", line=3)


@pytest.mark.parametrize("value", ["null", "3", '"a"', '[{"id": "a", "text": "x"}]'])
def test_line_that_is_not_an_object_is_refused(write, value):
    assert_refused(read_targets, write(value), "not a JSON object", value, "one object", line=1)


@pytest.mark.parametrize(("present", "missing"), [("id", "text"), ("text", "id")])
def test_target_without_a_key_is_refused(write, present, missing):
    path = write({present: "x"})
    assert_refused(read_targets, path, f'key "{missing}" is missing', f'Add "{missing}"', line=1)


def test_pair_without_a_query_is_refused(write, targets):
    path = write({"target": "a"})
    assert_refused(
        lambda p: read_pairs(p, targets), path, 'key "query" is missing', 'Add "query"', line=1
    )


@pytest.mark.parametrize("identifier", [7, 0.5])
def test_number_as_identifier_is_refused_with_its_quoted_form(write, targets, identifier):
    remedy = f'Quote it: "{identifier}"'
    assert_refused(read_targets, write({"id": identifier, "text": "x"}), remedy, line=1)
    for pair in ({"target": identifier}, {"targets": ["a", identifier]}):
        path = write({"query": "x", **pair})
        assert_refused(lambda p: read_pairs(p, targets), path, "not a string", remedy, line=1)


@pytest.mark.parametrize("value", [None, True, ["x"], {"x": 1}])
def test_value_that_is_not_a_string_is_refused(write, value):
    path = write({"id": "a", "text": value})
    assert_refused(
        read_targets, path, '"text" is not a string', json.dumps(value), "Write a string", line=1
    )


def test_empty_identifier_is_refused(write):
    path = write({"id": "", "text": "x"})
    assert_refused(read_targets, path, '"id" is empty', "an identifier", line=1)


def test_half_of_a_surrogate_pair_is_refused(write):
    path = write(r'{"id": "a", "text": "\ud83d\ude00"}', r'{"id": "b", "text": "\ud83d"}')
    assert_refused(read_targets, path, '"text"', "surrogate", r"\ud83d", "both halves", line=2)


def test_repeated_identifier_is_refused_with_its_first_line(write):
    path = write({"id": "a", "text": "x"}, "", {"id": "b", "text": ""}, {"id": "a", "text": "y"})
    assert_refused(read_targets, path, "that of line 1", '"a"', "Remove one", line=4)


@pytest.mark.parametrize("keys", [{}, {"target": "a", "targets": ["a"]}])
def test_pair_with_both_keys_or_neither_is_refused(write, targets, keys):
    path = write({"query": "x", **keys})
    assert_refused(
        lambda p: read_pairs(p, targets), path, 'either "target" or "targets"', "never both", line=1
    )


def test_list_under_target_is_refused(write, targets):
    path = write({"query": "x", "target": ["a", "b"]})
    assert_refused(
        lambda p: read_pairs(p, targets), path, "one identifier", 'Name the key "targets"', line=1
    )


@pytest.mark.parametrize("value", ["a", None, {"a": 1}])
def test_targets_that_are_not_a_list_are_refused(write, targets, value):
    path = write({"query": "x", "targets": value})
    assert_refused(lambda p: read_pairs(p, targets), path, "a list", 'name the key "target"', line=1)


def test_empty_list_of_targets_is_refused(write, targets):
    path = write({"query": "x", "targets": []})
    assert_refused(lambda p: read_pairs(p, targets), path, "empty", "remove the line", line=1)


@pytest.mark.parametrize(
    "pair", [{"query": "x", "target": "nowhere"}, {"query": "x", "targets": ["a", "nowhere"]}]
)
def test_unknown_target_is_refused(write, targets, pair):
    path = write({"query": "x", "target": "a"}, pair)
    with pytest.raises(DataError) as caught:
        read_pairs(path, targets)
    assert str(caught.value) == (
        f"{path}, line 2: this target is not among the 3 of the corpus. "
        'Received: "nowhere". Add it to the targets, or remove it from the pair.'
    )


def test_unknown_target_that_differs_in_case_or_spaces_is_matched_at_any_size(write):
    path = write({"query": "x", "target": " ITEM-7"})
    targets = Targets([f"Item-{i}" for i in range(20_000)], [""] * 20_000)
    assert_refused(
        lambda p: read_pairs(p, targets), path, 'Perhaps "Item-7" is meant', "20,000", line=1
    )


def test_unknown_target_is_matched_with_a_similar_one_in_a_small_corpus(write):
    path = write({"query": "x", "target": "retreival"})
    targets = Targets(["ranking", "retrieval"], ["", ""])
    assert_refused(lambda p: read_pairs(p, targets), path, 'Perhaps "retrieval" is meant', line=1)


def test_long_lines_are_cut_in_messages(write):
    path = write({"text": "x" * 10_000})
    with pytest.raises(DataError) as caught:
        read_targets(path)
    assert len(str(caught.value)) < len(str(path)) + 250


# Telling data apart.


def test_same_lines_have_the_same_digest_in_whatever_file(tmp_path):
    lines = b'{"id": "a", "text": "one"}\n{"id": "b", "text": ""}\n'
    (tmp_path / "plain").write_bytes(lines)
    (tmp_path / "zipped").write_bytes(gzip.compress(lines.replace(b'"text"', b'"more": 1, "text"')))
    targets = [read_targets(tmp_path / name) for name in ("plain", "zipped")]
    assert digest(targets[0]) == digest(targets[1])
    assert len(digest(targets[0])) == 16


def test_other_data_have_other_digests():
    def pairs(queries, positives):
        return Pairs(queries, [np.array(rows, np.int32) for rows in positives])

    different = [
        Targets(["a", "b"], ["x", "y"]),
        Targets(["b", "a"], ["x", "y"]),
        Targets(["a", "b"], ["y", "x"]),
        Targets(["ab", ""], ["x", "y"]),
        pairs(["q", "r"], [[0], [1, 2]]),
        pairs(["q", "r"], [[0, 1], [2]]),
        pairs(["q", "r"], [[0], [2, 1]]),
        pairs(["qr", ""], [[0], [1, 2]]),
    ]
    assert len({digest(data) for data in different}) == len(different)
