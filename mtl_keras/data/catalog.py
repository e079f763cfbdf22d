"""The data sets that the library knows, and where it keeps them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator

import tensorflow as tf
import tensorflow_datasets as tfds

from mtl_keras import errors
from mtl_keras.data import movielens_history
from mtl_keras.data.multi30k import Multi30k


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One data set that can be prepared and loaded by name.

    Attributes:
        name: TensorFlow Datasets' name, with the configuration.
        description: One line for people.
        made_from: Data sets that have to be prepared first.
        needs_files: Whether original files are read, by this data set itself
            and not by one that it is made from.
        files: Names of these files, where the builder knows further ones of other
            configurations; empty for all that it knows.
        reads_audio: Whether TensorFlow Datasets reads these files with pydub.
    """

    name: str
    description: str
    made_from: tuple[str, ...] = ()
    needs_files: bool = False
    files: tuple[str, ...] = ()
    reads_audio: bool = False

    @property
    def needs_downloads(self) -> bool:
        """Whether preparing it from nothing takes original files."""
        return self.needs_files or any(
            find(source).needs_downloads for source in self.made_from
        )


_DATA_SETS = {
    entry.name: entry
    for entry in (
        DataSet(
            "multi_digits/digits",
            "Two handwritten digits per scene, from scikit-learn's bundled digits",
        ),
        DataSet(
            "multi_digits/mnist",
            "Two handwritten digits per scene, from MNIST",
            made_from=("mnist",),
        ),
        DataSet("mnist", "MNIST, handwritten digits", needs_files=True),
        *(
            DataSet(
                f"mmoe_synthetic/correlation_{percent}",
                "Two related regression tasks, as in the MMoE paper; correlation "
                f"{percent / 100}",
            )
            for percent in (50, 90, 100)
        ),
        *(
            DataSet(
                f"generated_text/{task}",
                f"Text of a small grammar: {task}",
            )
            for task in ("sentiment", "answer", "translation")
        ),
        DataSet("imdb_reviews", "IMDB, sentiment of film reviews", needs_files=True),
        DataSet(
            "squad/v1.1",
            "SQuAD 1.1, questions about paragraphs of Wikipedia",
            needs_files=True,
            files=("train-v1.1.json", "dev-v1.1.json"),
        ),
        *(
            DataSet(
                f"{Multi30k.name}/{config.name}",
                f"Multi30k, captions: {config.description.rstrip('.')}",
                needs_files=True,
            )
            for config in Multi30k.BUILDER_CONFIGS
        ),
        DataSet(
            "multimodal/unpaired_generated",
            "An image, a recording or a text per sample, generated",
        ),
        DataSet(
            "multimodal/paired_generated",
            "One digit seen, heard and written per sample, generated",
        ),
        DataSet(
            "multimodal/unpaired",
            "An image, a recording or a text per sample",
            made_from=("mnist", "spoken_digit", "imdb_reviews"),
        ),
        DataSet(
            "multimodal/paired",
            "One digit seen, heard and written per sample",
            made_from=("mnist", "spoken_digit"),
        ),
        DataSet(
            "spoken_digit",
            "Free Spoken Digit Dataset",
            needs_files=True,
            reads_audio=True,
        ),
        *(
            DataSet(
                f"behaviour/{size}",
                f"Generated impressions, clicks and conversions, {samples:,}",
            )
            for size, samples in (
                ("small", 10_000),
                ("medium", 1_000_000),
                ("large", 10_000_000),
            )
        ),
        DataSet(
            "census_income",
            "UCI Census-Income (KDD), three yes-or-no questions about people",
            needs_files=True,
        ),
        DataSet(
            "movielens_history",
            "MovieLens ratings, each with the ratings before it",
            made_from=(movielens_history.SOURCE,),
        ),
        DataSet(
            movielens_history.SOURCE,
            "MovieLens, 100,836 ratings",
            needs_files=True,
            files=("ml-latest-small.zip",),
        ),
    )
}

_ALIASES = {
    "behaviour": "behaviour/small",
    "mmoe_synthetic": "mmoe_synthetic/correlation_50",
    "multi30k": "multi30k/de",
    "multi_digits": "multi_digits/digits",
    "multimodal": "multimodal/unpaired_generated",
    "squad": "squad/v1.1",
}


def names() -> list[str]:
    """Returns the names of all data sets, sorted."""
    return sorted(_DATA_SETS)


def full_name(name: str) -> str:
    """Returns a data set's name with its configuration, the default if none is given.

    A name that no data set has comes back as it is.
    """
    return _ALIASES.get(name, name)


def find(name: str) -> DataSet:
    """Returns the data set of that name.

    Args:
        name: One of `names()`, or one without its configuration, which then is
            the default one.

    Raises:
        InputError: No data set has this name.
    """
    entry = _DATA_SETS.get(full_name(name))
    if entry is None:
        raise errors.unknown_name("data set", name, _DATA_SETS)
    return entry


def resolve_data_dir(data_dir: str | os.PathLike | None = None) -> pathlib.Path:
    """Returns the folder that prepared data sets are kept in.

    Args:
        data_dir: The folder, or `None` for `MTL_KERAS_DATA_DIR`, else
            `TFDS_DATA_DIR`, else TensorFlow Datasets' own default.
    """
    chosen = (
        data_dir
        or os.environ.get("MTL_KERAS_DATA_DIR")
        or os.environ.get("TFDS_DATA_DIR")
        or "~/tensorflow_datasets"
    )
    return pathlib.Path(chosen).expanduser().absolute()


def builder(
    name: str, data_dir: str | os.PathLike | None = None
) -> tfds.core.DatasetBuilder:
    """Returns the TensorFlow Datasets builder of a data set.

    Args:
        name: One of `names()`.
        data_dir: See `resolve_data_dir`.

    Raises:
        InputError: No data set has this name, or its prepared folder is damaged.
    """
    full, root = find(name).name, resolve_data_dir(data_dir)
    try:
        return tfds.builder(full, data_dir=os.fspath(root))
    # Whatever TensorFlow Datasets raises while it reads its own metadata.
    except Exception as error:
        if not any(root.joinpath(*full.split("/")).rglob("dataset_info.json")):
            raise
        raise damaged(full, root) from error


def damaged(name: str, root: pathlib.Path) -> errors.InputError:
    """Returns the error for prepared data that cannot be read."""
    return errors.InputError(
        f"The prepared data of {name!r} in {root} are damaged. Remove their folder; "
        "then they can be prepared again."
    )


@contextlib.contextmanager
def reading(name: str, data_dir: str | os.PathLike | None = None) -> Iterator[None]:
    """Context manager: raises `InputError` for prepared data damaged on disk.

    Args:
        name: Name of the data set, for the message.
        data_dir: See `resolve_data_dir`.
    """
    try:
        yield
    except (tf.errors.DataLossError, tf.errors.NotFoundError) as error:
        is_elsewhere = ".tfrecord" not in str(error)
        if isinstance(error, tf.errors.NotFoundError) and is_elsewhere:
            raise
        raise damaged(name, resolve_data_dir(data_dir)) from error


def is_prepared(name: str, data_dir: str | os.PathLike | None = None) -> bool:
    """Returns whether a data set is ready to be loaded.

    Args:
        name: One of `names()`.
        data_dir: See `resolve_data_dir`.
    """
    # Not `builder.is_prepared()`, which logs a warning where there is no data.
    return (builder(name, data_dir).data_path / "dataset_info.json").exists()


@dataclasses.dataclass(frozen=True)
class Info:
    """State of a data set on this machine.

    Attributes:
        name: The data set's name.
        description: One line for people.
        prepared: Whether it is ready to be loaded.
        needs_downloads: Whether preparing it from nothing takes original files.
        splits: Number of examples by split; empty while it is not prepared.
        path: The folder it is, or would be, kept in.
    """

    name: str
    description: str
    prepared: bool
    needs_downloads: bool
    splits: dict[str, int]
    path: pathlib.Path


def info(name: str, data_dir: str | os.PathLike | None = None) -> Info:
    """Returns the state of a data set on this machine, an `Info`.

    Args:
        name: One of `names()`.
        data_dir: See `resolve_data_dir`.

    Raises:
        InputError: No data set has this name.
    """
    entry = find(name)
    built = builder(name, data_dir)
    prepared = is_prepared(name, data_dir)
    splits = built.info.splits.items() if prepared else ()
    return Info(
        name=entry.name,
        description=entry.description,
        prepared=prepared,
        needs_downloads=entry.needs_downloads,
        splits={split: part.num_examples for split, part in splits},
        path=pathlib.Path(built.data_path),
    )
