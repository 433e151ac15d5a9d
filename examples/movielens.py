"""Ratings of movies for the examples that follow the tutorials of TensorFlow Recommenders.

Each of them takes one argument, where the ratings come from:

    python tfrs_retrieval.py                   generated ones, the default
    python tfrs_retrieval.py tfds              MovieLens 100K, through the package tensorflow_datasets
    python tfrs_retrieval.py path/to/ml-100k   a folder of MovieLens (https://grouplens.org/datasets/
                                               movielens/): u.data and u.item, or ratings.csv and
                                               movies.csv
"""

import csv
import pathlib
import sys
from typing import NamedTuple

import numpy as np
import tensorflow as tf

USERS, MOVIES, RATINGS = 500, 1000, 10_000
YEAR = 365 * 24 * 3600


class Data(NamedTuple):
    """What there is.

    Attributes:
        users, titles: NumPy arrays of str, each once.
        ratings: dict of NumPy arrays, one entry a rating: "user_id", "movie_title" (str),
            "user_rating" (float32), "timestamp" (int64, seconds).
    """

    users: np.ndarray
    titles: np.ndarray
    ratings: dict

    def split(self, batch=256):
        """Shuffled training batches, of one size, and the rest, a fifth, in batches to test on."""
        number = len(self.ratings["user_id"])
        ratings = tf.data.Dataset.from_tensor_slices(self.ratings).shuffle(number, 0, False)
        train = ratings.take(number * 4 // 5).shuffle(number).batch(batch, drop_remainder=True)
        return train, ratings.skip(number * 4 // 5).batch(batch)


def load(source=None):
    """The ratings that a name stands for; default: the first argument of the program."""
    source = source or (sys.argv[1] if len(sys.argv) > 1 else "generated")
    if source == "generated":
        ratings = generate()
    elif source == "tfds":
        ratings = from_tfds()
    else:
        ratings = from_folder(pathlib.Path(source))
    return Data(np.unique(ratings["user_id"]), np.unique(ratings["movie_title"]), ratings)


def generate(seed=0):
    """Users who watch what is near on a circle of tastes, which turns by a tenth in a year."""
    rng = np.random.default_rng(seed)
    taste = rng.random(USERS)
    user = rng.integers(USERS, size=RATINGS)
    age = rng.random(RATINGS)
    distance = rng.normal(0, 0.01, RATINGS)
    movie = ((taste[user] + 0.1 * age + distance) % 1.0 * MOVIES).astype(int)
    rating = 4.5 - 100 * np.abs(distance) + rng.normal(0, 0.3, RATINGS)
    return {
        "user_id": user.astype(str),
        "movie_title": np.char.add("Movie ", movie.astype(str)),
        "user_rating": np.clip(np.round(rating), 1, 5).astype(np.float32),
        "timestamp": (880_000_000 + age * YEAR).astype(np.int64),
    }


def from_tfds():
    """MovieLens 100K; needs a network the first time."""
    import tensorflow_datasets as tfds

    names = ("user_id", "movie_title", "user_rating", "timestamp")
    rows = tfds.load("movielens/100k-ratings", split="train")
    rows = rows.map(lambda row: {name: row[name] for name in names})
    parts = list(rows.batch(10_000).as_numpy_iterator())

    def joined(name, dtype):
        return np.concatenate([part[name] for part in parts]).astype(dtype)

    texts = {name: np.char.decode(joined(name, "S"), "utf-8") for name in ("user_id", "movie_title")}
    numbers = {
        "user_rating": joined("user_rating", np.float32),
        "timestamp": joined("timestamp", np.int64),
    }
    return texts | numbers


def from_folder(folder):
    """The ratings of a folder that was downloaded."""
    if (folder / "u.data").exists():
        titles = dict(_rows(folder / "u.item", delimiter="|", encoding="latin-1"))
        rows = list(_rows(folder / "u.data", delimiter="\t", columns=4))
    elif (folder / "ratings.csv").exists():
        titles = dict(list(_rows(folder / "movies.csv"))[1:])
        rows = list(_rows(folder / "ratings.csv", columns=4))[1:]
    else:
        raise SystemExit(
            f"{folder}: no u.data and no ratings.csv in there. Give a folder of MovieLens, tfds, or "
            "nothing for generated ratings."
        )
    user, movie, rating, seconds = zip(*rows, strict=True)
    return {
        "user_id": np.array(user),
        "movie_title": np.array([titles[each] for each in movie]),
        "user_rating": np.array(rating, np.float32),
        "timestamp": np.array(seconds, np.int64),
    }


def _rows(path, delimiter=",", encoding="utf-8", columns=2):
    with open(path, encoding=encoding, newline="") as file:
        for row in csv.reader(file, delimiter=delimiter):
            yield tuple(row[:columns])
