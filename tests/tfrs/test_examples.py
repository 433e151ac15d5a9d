"""The examples that follow the tutorials of TensorFlow Recommenders, on a small folder of MovieLens."""

import importlib
import pathlib
import re
import runpy
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
USERS, MOVIES = 40, 150


@pytest.fixture(scope="module", params=["u.data", "ratings.csv"])
def folder(request, tmp_path_factory):
    """Users who watch movies of their own number, modulo 10; in the format of 1998 and of today."""
    folder, rng = tmp_path_factory.mktemp("movielens"), np.random.default_rng(0)
    ratings = []
    for user in range(USERS):
        for movie in rng.choice(np.arange(user % 10, MOVIES, 10), 12, replace=False):
            ratings.append([user, movie, rng.integers(1, 6), 880_000_000 + rng.integers(10**7)])
    if request.param == "u.data":
        lines = ["\t".join(map(str, row)) for row in ratings]
        titles = [f"{movie}|The movie, number {movie}|rest" for movie in range(MOVIES)]
        (folder / "u.item").write_text("\n".join(titles), encoding="latin-1")
    else:
        lines = ["userId,movieId,rating,timestamp", *(",".join(map(str, row)) for row in ratings)]
        titles = [f'{movie},"The movie, number {movie}",rest' for movie in range(MOVIES)]
        (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *titles]))
    (folder / request.param).write_text("\n".join(lines))
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example as a program; returns what it printed."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(str(EXAMPLES))
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("folder", ["ratings.csv"], indirect=True)
@pytest.mark.parametrize("name, lines", [("context", 2), ("multitask", 3), ("deep", 2)])
def test_tutorial_runs(run, folder, name, lines):
    # Every variant is trained, and evaluated on all 150 movies.
    found = re.findall(r"top 100 (\d\.\d+)", run(f"tfrs_{name}.py", folder))
    assert len(found) == lines and all(0.0 < float(share) <= 1.0 for share in found)


@pytest.mark.parametrize("folder", ["u.data"], indirect=True)
def test_retrieval_tutorial_runs(run, folder):
    printed = run("tfrs_retrieval.py", folder)
    assert len(re.findall(r"^epoch \d: top 10", printed, re.MULTILINE)) == 3
    assert "The movie, number" in printed


def test_retrieval_tutorial_runs_on_what_tensorflow_datasets_hands_out(run):
    # The package itself, its declaration of MovieLens included, but for the download: random ratings.
    with tfds.testing.mock_data(num_examples=600):
        printed = run("tfrs_retrieval.py", "tfds")
    assert len(re.findall(r"^epoch \d: top 10", printed, re.MULTILINE)) == 3


def test_folder_of_movielens_is_read(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    movielens = importlib.import_module("movielens")
    data = movielens.load(str(folder))
    assert len(data.users) == USERS and set(data.users) == set(map(str, range(USERS)))
    number = [int(title.rsplit(" ", 1)[1]) for title in data.ratings["movie_title"]]
    assert [each % 10 for each in number] == [int(user) % 10 for user in data.ratings["user_id"]]
    assert data.ratings["user_rating"].dtype == np.float32
    assert set(data.ratings["user_rating"]) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert (data.ratings["timestamp"] >= 880_000_000).all()
    train, test = data.split(batch=64)
    assert sum(len(batch["user_id"]) for batch in train) == 384 - 384 % 64
    assert sum(len(batch["user_id"]) for batch in test) == 96


def test_folder_without_ratings_is_refused(run, tmp_path):
    with pytest.raises(SystemExit, match="no u.data and no ratings.csv"):
        run("tfrs_retrieval.py", tmp_path)
