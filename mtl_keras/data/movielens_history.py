"""TensorFlow Datasets builder: MovieLens ratings with the history before each."""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mtl_keras.data import columns, sources

SOURCE = "movielens/latest-small-ratings"

_DESCRIPTION = """
MovieLens ratings in the order of time, each with the user's preceding ratings. The
newest tenth is the test split, the tenth before it the validation split. All that a
sample holds beside its label was known before its time.
"""

_CITATION = """
@article{harper2015movielens,
  title={The MovieLens Datasets: History and Context},
  author={Harper, F. Maxwell and Konstan, Joseph A.},
  journal={ACM Transactions on Interactive Intelligent Systems},
  volume={5}, number={4}, year={2015}, doi={10.1145/2827872}
}
"""

TASKS = ("rating", "liked")
"""Names of the labels."""

HISTORY = 30
"""Ratings that a sample remembers."""

LIKED = 4.0
"""Ratings of at least this many stars count as liked."""

_GENRES = 10
_SHRINKAGE = 5.0
_YEAR = re.compile(r"\((\d{4})\)\s*$")


class MovielensHistory(tfds.core.GeneratorBasedBuilder):
    """MovieLens ratings, each with the ratings before it.

    Made from TensorFlow Datasets' `movielens/latest-small-ratings`. "Before" means
    a smaller timestamp: ratings of the same second do not see each other.

    Features:

    - `user_id`, `movie_id`: text. `user_id` is no input of a model: split by time,
      nine in ten test ratings are by users that training never saw.
    - `genres`: text, `[10]`, padded with `""` at the end.
    - `year`: float32, the year in the movie's title; 0 where there is none.
    - `history_movies`: text, `[30]`, and `history_ratings`: float32, `[30]`: the
      user's last ratings, newest last, `""` and 0 in front of the first.
    - `user_mean`, `movie_mean`: float32, the mean of all ratings before, of this
      user and of this movie, drawn to the mean of everything before by 5 ratings.
    - `user_count`, `movie_count`: float32, how many ratings these are.
    - `timestamp`: int64, seconds since 1970. No input of a model.

    Labels: `rating`, float32, 0.5 to 5 stars; `liked`, 1 from 4 stars on.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        def vector(length: int, dtype: Any) -> tfds.features.Tensor:
            return tfds.features.Tensor(shape=(length,), dtype=dtype)

        real = tfds.features.Scalar(np.float32)
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "user_id": tfds.features.Text(),
                    "movie_id": tfds.features.Text(),
                    "genres": vector(_GENRES, np.str_),
                    "year": real,
                    "history_movies": vector(HISTORY, np.str_),
                    "history_ratings": vector(HISTORY, np.float32),
                    "user_mean": real,
                    "user_count": real,
                    "movie_mean": real,
                    "movie_count": real,
                    "timestamp": tfds.features.Scalar(np.int64),
                    "rating": real,
                    "liked": tfds.features.Scalar(np.int64),
                }
            ),
            citation=_CITATION,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        del dl_manager  # Nothing is downloaded: MovieLens is read as prepared.
        # <data_dir>/movielens_history/<version>
        table = with_history(read_ratings(self.data_path.parents[1]))
        parts = split_by_time(table["timestamp"])
        train = {name: values[parts["train"]] for name, values in table.items()}
        self.info.metadata.update(columns.to_metadata(_describe(train), TASKS))
        return {
            split: self._generate_examples(table, rows) for split, rows in parts.items()
        }

    def _generate_examples(
        self, table: dict[str, np.ndarray], rows: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for row in rows:
            yield int(row), {name: values[row] for name, values in table.items()}


def read_ratings(data_dir: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads MovieLens as TensorFlow Datasets prepared it, oldest rating first.

    Args:
        data_dir: The folder that holds TensorFlow Datasets' prepared data.

    Returns:
        `{feature: [ratings]}`; text as `str`, `genres` `[ratings, 10]`.

    Raises:
        InputError: MovieLens is not prepared in `data_dir`.
    """
    made = "movielens_history"
    builder = sources.prepared(SOURCE, data_dir, made=made, to_run=made)
    genre_names = builder.info.features["movie_genres"].feature.names
    rows = list(tfds.as_numpy(builder.as_dataset(split="train", shuffle_files=False)))
    # By movie within a second, so that the order is the same every time.
    rows.sort(key=lambda r: (r["timestamp"], r["user_id"], r["movie_id"]))
    genres = np.full((len(rows), _GENRES), "", object)
    years = np.zeros(len(rows), np.float32)
    for index, row in enumerate(rows):
        names = [genre_names[genre] for genre in row["movie_genres"]]
        genres[index, : len(names)] = names
        if match := _YEAR.search(row["movie_title"].decode()):
            years[index] = float(match[1])
    return {
        "user_id": np.array([row["user_id"].decode() for row in rows], object),
        "movie_id": np.array([row["movie_id"].decode() for row in rows], object),
        "genres": genres,
        "year": years,
        "timestamp": np.array([row["timestamp"] for row in rows], np.int64),
        "rating": np.array([row["user_rating"] for row in rows], np.float32),
    }


def with_history(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds to each rating the history and statistics before it, and `liked`.

    Args:
        table: `read_ratings`' result, or its like: sorted by `timestamp`.
    """
    count = len(table["rating"])
    movies = np.full((count, HISTORY), "", object)
    ratings = np.zeros((count, HISTORY), np.float32)
    means = {name: np.zeros(count, np.float32) for name in ("user", "movie")}
    counts = {name: np.zeros(count, np.float32) for name in ("user", "movie")}
    seen: dict[str, list[tuple[str, float]]] = collections.defaultdict(list)
    sums: dict[tuple[str, str], float] = collections.defaultdict(float)
    numbers: dict[tuple[str, str], int] = collections.defaultdict(int)
    total, number = 0.0, 0
    start = 0
    while start < count:
        end = int(
            np.searchsorted(table["timestamp"], table["timestamp"][start], "right")
        )
        prior = total / number if number else 0.0
        for row in range(start, end):
            known = seen[table["user_id"][row]][-HISTORY:]
            for place, (movie, rating) in enumerate(known, HISTORY - len(known)):
                movies[row, place], ratings[row, place] = movie, rating
            for name in ("user", "movie"):
                key = (name, table[f"{name}_id"][row])
                counts[name][row] = numbers[key]
                shrunk = sums[key] + _SHRINKAGE * prior
                means[name][row] = shrunk / (numbers[key] + _SHRINKAGE)
        for row in range(start, end):
            rating = float(table["rating"][row])
            seen[table["user_id"][row]].append((table["movie_id"][row], rating))
            for name in ("user", "movie"):
                key = (name, table[f"{name}_id"][row])
                sums[key] += rating
                numbers[key] += 1
            total, number = total + rating, number + 1
        start = end
    return {
        **table,
        "history_movies": movies,
        "history_ratings": ratings,
        "user_mean": means["user"],
        "user_count": counts["user"],
        "movie_mean": means["movie"],
        "movie_count": counts["movie"],
        "liked": (table["rating"] >= LIKED).astype(np.int64),
    }


def split_by_time(timestamps: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the rows of each split: the newest tenth is for test.

    Ratings of one second stay together, so that a split may be some rows short.

    Args:
        timestamps: `[rows]`, ascending.
    """
    count = len(timestamps)
    ends = [
        int(np.searchsorted(timestamps, timestamps[int(share * count)], "left"))
        for share in (0.8, 0.9)
    ]
    parts = np.split(np.arange(count), ends)
    return dict(zip(("train", "validation", "test"), parts, strict=True))


def _describe(train: dict[str, np.ndarray]) -> dict[str, columns.Column]:
    genres = train["genres"][train["genres"] != ""]
    return {
        "movie_id": columns.category(train["movie_id"].astype(str)),
        "genres": columns.Column(
            "category",
            "string",
            vocabulary=columns.category(genres.astype(str)).vocabulary,
            length=_GENRES,
        ),
        "history_movies": columns.Column(
            "category", "string", length=HISTORY, same_as="movie_id"
        ),
        "history_ratings": columns.Column(
            "number",
            "float32",
            mean=float(train["rating"].mean()),
            variance=float(train["rating"].var()),
            length=HISTORY,
        ),
        **{
            name: columns.number(train[name])
            for name in ("year", "user_mean", "user_count", "movie_mean", "movie_count")
        },
    }
