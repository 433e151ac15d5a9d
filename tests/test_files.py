import json
import math
import os
import stat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_dynidx.files import (
    OutputError,
    check_writable_target,
    new_directory,
    write_bytes,
    write_json,
)


def contents(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def full_disk(monkeypatch):
    """Lets nothing be moved to its final place."""

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)


# write_bytes


def test_bytes_replace_an_earlier_file(tmp_path):
    path = tmp_path / "runs" / "plot.png"
    write_bytes(path, b"\x89PNG\r\n\x00")
    write_bytes(path, b"\n\xff")
    assert path.read_bytes() == b"\n\xff" and contents(path.parent) == ["plot.png"]


def test_bytes_that_cannot_be_moved_leave_the_earlier_file(tmp_path, full_disk):
    path = tmp_path / "plot.png"
    path.write_bytes(b"\n\xff")
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"other")
    assert path.read_bytes() == b"\n\xff" and contents(tmp_path) == ["plot.png"]


# write_json


def test_json_is_written_with_its_folders_and_nothing_else(tmp_path):
    path = tmp_path / "runs" / "1" / "report.json"
    write_json(path, {"miner": "tree", "history": [{"step": 1}], "query": "Grüße"})
    assert json.loads(path.read_text("utf-8"))["query"] == "Grüße"
    assert "Grüße" in path.read_text("utf-8")
    assert contents(path.parent) == ["report.json"]


def test_numpy_is_written_as_numbers_and_lists(tmp_path):
    path = tmp_path / "report.json"
    report = {"a": np.float32(0.5), "b": np.int64(3), "c": np.arange(2), "d": np.bool_(True)}
    write_json(path, report)
    assert json.loads(path.read_text()) == {"a": 0.5, "b": 3, "c": [0, 1], "d": True}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_number_that_json_lacks_is_refused_with_its_place(tmp_path, number):
    path = tmp_path / "report.json"
    path.write_text("earlier")
    with pytest.raises(OutputError, match=r"history\[1\]\.metrics\.mrr.*Leave the key out"):
        write_json(path, {"history": [{}, {"metrics": {"mrr": number}}]})
    assert path.read_text() == "earlier"
    assert contents(tmp_path) == ["report.json"]


def test_object_that_json_lacks_is_refused(tmp_path):
    with pytest.raises(TypeError, match="no set.*Received: {1}.*Convert"):
        write_json(tmp_path / "report.json", {"rows": {1}})
    assert contents(tmp_path) == []


def test_earlier_file_stays_when_writing_fails(tmp_path, full_disk):
    path = tmp_path / "report.json"
    path.write_text("earlier")
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {})
    assert path.read_text() == "earlier"
    assert contents(tmp_path) == ["report.json"]


def test_link_keeps_naming_the_file_that_is_replaced(tmp_path):
    file, link = tmp_path / "file.json", tmp_path / "link.json"
    file.write_text("earlier")
    link.symlink_to(file)
    write_json(link, [1])
    assert link.is_symlink()
    assert json.loads(file.read_text()) == [1]


@pytest.mark.skipif(os.name != "posix", reason="devices are a POSIX feature")
def test_device_is_written_to_and_not_replaced():
    check_writable_target(os.devnull, "file")
    write_json(os.devnull, [1])
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.skipif(os.name != "posix", reason="modes are a POSIX feature")
def test_outputs_have_the_modes_that_the_user_set(tmp_path):
    earlier = os.umask(0o022)
    try:
        write_json(tmp_path / "report.json", {})
        with new_directory(tmp_path / "exported"):
            pass
    finally:
        os.umask(earlier)
    assert stat.S_IMODE((tmp_path / "report.json").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "exported").stat().st_mode) == 0o755


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@settings(deadline=None)
@given(value=json_values)
def test_json_is_read_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    write_json(path, value)
    assert json.loads(path.read_text("utf-8")) == value


# new_directory


def test_directory_appears_when_the_block_succeeds(tmp_path):
    path = tmp_path / "runs" / "exported"
    with new_directory(path) as folder:
        (folder / "model").write_text("whole")
        assert folder.parent == path.parent
        assert not path.exists()
    assert (path / "model").read_text() == "whole"
    assert contents(path.parent) == ["exported"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("replace", [False, True])
def test_nothing_remains_of_a_block_that_fails(tmp_path, error, replace):
    with pytest.raises(error), new_directory(tmp_path / "exported", replace=replace) as folder:
        (folder / "model").write_text("half")
        raise error
    assert contents(tmp_path) == []


def test_empty_directory_is_used(tmp_path):
    path = tmp_path / "exported"
    path.mkdir()
    with new_directory(path) as folder:
        (folder / "model").touch()
    assert contents(path) == ["model"]


def test_directory_that_fills_meanwhile_is_kept(tmp_path):
    path = tmp_path / "exported"
    with pytest.raises(OSError), new_directory(path):
        path.mkdir()
        (path / "other").touch()
    assert contents(tmp_path) == ["exported"]
    assert contents(path) == ["other"]


def test_replace_swaps_an_earlier_directory_out(tmp_path):
    path = tmp_path / "exported"
    path.mkdir()
    (path / "old").touch()
    with new_directory(path, replace=True) as folder:
        (folder / "new").touch()
        assert contents(path) == ["old"]
    assert contents(path) == ["new"]
    assert contents(tmp_path) == ["exported"]


@pytest.mark.parametrize("failing_move", [1, 2])
def test_earlier_directory_stays_when_the_swap_fails(tmp_path, monkeypatch, failing_move):
    path = tmp_path / "exported"
    path.mkdir()
    (path / "old").touch()
    moves = []
    move = os.replace

    def fail_once(source, destination):
        moves.append(source)
        if len(moves) == failing_move:
            raise OSError(5, "Input/output error")
        move(source, destination)

    monkeypatch.setattr("os.replace", fail_once)
    with pytest.raises(OSError, match="Input/output"), new_directory(path, replace=True):
        pass
    assert contents(path) == ["old"]
    assert contents(tmp_path) == ["exported"]


def test_link_to_a_directory_keeps_naming_what_is_replaced(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "old").touch()
    (tmp_path / "current").symlink_to("v1")
    with new_directory(tmp_path / "current", replace=True) as folder:
        (folder / "new").touch()
    assert (tmp_path / "current").is_symlink()
    assert contents(tmp_path / "v1") == ["new"]


# What is refused, by new_directory at once and by check_writable_target before


def refusals(path, kind, replace=False):
    """The messages of every function that refuses the path."""
    with pytest.raises(OutputError) as caught:
        check_writable_target(path, kind, replace=replace)
    messages = [str(caught.value)]
    if kind == "directory":
        with pytest.raises(OutputError) as caught, new_directory(path, replace=replace):
            pass
        messages.append(str(caught.value))
    for message in messages:
        assert "Received: " in message
        assert str(path) in message
    return messages


def test_directory_with_contents_is_refused(tmp_path):
    (tmp_path / "mine").touch()
    for message in refusals(tmp_path, "directory"):
        assert "not empty" in message and "Name another path" in message
    assert contents(tmp_path) == ["mine"]


@pytest.mark.parametrize("replace", [False, True])
def test_file_in_the_place_of_a_directory_is_refused(tmp_path, replace):
    path = tmp_path / "file"
    path.write_text("mine")
    for message in refusals(path, "directory", replace):
        assert "is a directory. Received: the file" in message and "not exist yet" in message
    assert path.read_text() == "mine"


def test_mount_point_is_refused():
    for message in refusals(os.path.abspath(os.sep), "directory", replace=True):
        assert "mount point" in message and "Name a directory in it" in message


def test_directory_in_the_place_of_a_file_is_refused(tmp_path):
    (message,) = refusals(tmp_path, "file")
    assert "is a file. Received: the directory" in message and "Name a file in it" in message


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_path_below_a_file_is_refused(tmp_path, kind):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "output"
    with pytest.raises(OutputError, match="Not a directory.*Name a path in a folder"):
        check_writable_target(path, kind)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch, kind):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", denied)
    with pytest.raises(OutputError, match="Permission denied.*Received: .*Name a path in a folder"):
        check_writable_target(tmp_path / "new" / "output", kind)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_check_accepts_a_new_path_and_leaves_nothing(tmp_path, kind):
    check_writable_target(tmp_path / "a" / "b" / "output", kind)
    assert contents(tmp_path) == []


def test_check_accepts_what_would_be_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "report.json").write_text("earlier")
    check_writable_target(tmp_path / "folder" / "report.json", "file")
    check_writable_target(tmp_path / "folder", "directory", replace=True)
    assert (tmp_path / "folder" / "report.json").read_text() == "earlier"
