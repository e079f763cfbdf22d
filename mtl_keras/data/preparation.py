"""Preparing data sets once, from files on disk where files are needed."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import lzma
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils import tqdm_utils

from mtl_keras import optional
from mtl_keras.data import catalog
from mtl_keras.data.variants import VARIANTS
from mtl_keras.errors import InputError

if TYPE_CHECKING:
    import tensorflow as tf


def prepare(
    name: str,
    downloads: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
) -> None:
    """Prepares a data set, and first those that it is made from.

    Nothing is fetched over the network, and nothing is done where the data set
    is prepared already. If it fails, nothing half-made stays behind.

    Args:
        name: One of `data.names()`.
        downloads: Folder with the data set's original files, or a folder that
            has them in its subfolders.
        data_dir: Folder for prepared data. Defaults to `MTL_KERAS_DATA_DIR`,
            else `TFDS_DATA_DIR`, else TensorFlow Datasets' own default.

    Raises:
        InputError: The name is unknown, or a file is missing or altered, or
            original files are needed and `downloads` is not given.
        MissingExtraError: A package that reads the files is not installed.
    """
    entry = catalog.find(name)
    root = catalog.resolve_data_dir(data_dir)
    if catalog.is_prepared(entry.name, root):
        return
    missing = [
        source for source in entry.made_from if not catalog.is_prepared(source, root)
    ]
    takes_files = entry.needs_files or any(
        catalog.find(source).needs_downloads for source in missing
    )
    if takes_files and downloads is None:
        raise InputError(
            f"Expected the data set {entry.name!r} to be prepared, as it takes "
            "original files. Received: nothing prepared. Run: mtl-keras datasets "
            f"prepare {entry.name} --downloads DIR"
        )
    for source in missing:
        prepare(source, downloads, root)
    builder = catalog.builder(entry.name, root)
    files = {}
    if entry.needs_files:
        files = _checked_files(builder, downloads, entry.files)
    audio = optional.extra("audio", "pydub", f"The data set {entry.name!r}")
    with audio if entry.reads_audio else contextlib.nullcontext():
        _build(builder, root, files)


def load(
    name: str, split: str, *, data_dir: str | os.PathLike | None = None
) -> tf.data.Dataset:
    """Loads a split, and prepares the data set first if no files are needed.

    Args:
        name: One of `data.names()`.
        split: A TensorFlow Datasets split, for example `"train"` or
            `"test[:10%]"`.
        data_dir: Folder for prepared data. Defaults to `MTL_KERAS_DATA_DIR`,
            else `TFDS_DATA_DIR`, else TensorFlow Datasets' own default.

    Returns:
        The examples, one by one and always in the same order, as dicts of the
        data set's features.

    Raises:
        InputError: The name or split is unknown, or the data set is not
            prepared and needs original files.
    """
    prepare(name, data_dir=data_dir)
    builder = catalog.builder(name, data_dir)
    check_split(builder, split)
    return builder.as_dataset(split=split, shuffle_files=False)


def check_split(builder: tfds.core.DatasetBuilder, split: str) -> None:
    """Raises `InputError` unless a prepared data set has this split."""
    try:
        builder.info.splits[split]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"Expected a split of {builder.info.full_name}: "
            f"{', '.join(builder.info.splits)}, or a part of one such as "
            f"'train[:10%]'. Received: {split!r}."
        ) from error


def _checked_files(
    builder: tfds.core.DatasetBuilder,
    downloads: str | os.PathLike | None,
    names: Sequence[str],
) -> dict[str, pathlib.Path]:
    """Returns the builder's files by address, each of them verified.

    Args:
        builder: Knows the addresses, names and checksums.
        downloads: The folder, or one with the folders of several data sets.
        names: Files that are wanted; empty for all.
    """
    folder = pathlib.Path(downloads or ".").expanduser()
    files = {}
    for url, expected in (builder.url_infos or {}).items():
        name = expected.filename or url.rsplit("/", 1)[-1]
        if names and name not in names:
            continue
        path, wanted = _find(name, folder, builder.name), expected.checksum
        if path is None and (variant := VARIANTS.get(name)):
            path = _find(variant.filename, folder, builder.name)
            wanted = variant.checksum
        if path is None:
            raise InputError(
                f"Expected the original file {name} of {builder.name!r} in "
                f"{folder}, or in a folder there. Received: no such file. "
                f"Get it from {url}"
            )
        checksum = hashlib.sha256(path.read_bytes()).hexdigest()
        if checksum != wanted:
            raise InputError(
                f"Expected {path} to be the original file, with SHA-256 "
                f"{wanted}. Received: {checksum}. Get it from {url}"
            )
        files[url] = path
    return files


def _find(name: str, folder: pathlib.Path, data_set: str) -> pathlib.Path | None:
    """Returns a file of a folder or of one in it, that of the data set first."""
    within = sorted(folder.glob(f"*/{glob.escape(name)}"))
    for path in (folder / data_set / name, folder / name, *within):
        if path.is_file():
            return path
    return None


@contextlib.contextmanager
def _manual_dir(
    builder: tfds.core.DatasetBuilder, files: Mapping[str, pathlib.Path], work: str
) -> Iterator[pathlib.Path | None]:
    """Context manager: yields a folder of verified files for TensorFlow Datasets.

    Where a file stands in for an original one, the builder is told its size and
    checksum for the time of the block: TensorFlow Datasets checks these too.

    Args:
        builder: The builder that reads the files.
        files: `_checked_files`' result.
        work: An empty folder to use.
    """
    if not files:
        yield None
        return
    infos = dict(builder.url_infos)
    folder = pathlib.Path(work) / "original"
    folder.mkdir()
    changed = {}
    for url, path in files.items():
        target = folder / (infos[url].filename or url.rsplit("/", 1)[-1])
        if path.suffix == ".xz" and target.suffix != ".xz":
            with lzma.open(path) as packed, target.open("wb") as plain:
                shutil.copyfileobj(packed, plain)
        else:
            target.symlink_to(path.absolute())
        if path.name != target.name:
            changed[url] = tfds.core.download.checksums.UrlInfo(
                size=target.stat().st_size,
                checksum=hashlib.sha256(target.read_bytes()).hexdigest(),
                filename=target.name,
            )
    builder.url_infos.update(changed)
    try:
        yield folder
    finally:
        builder.url_infos.update({url: infos[url] for url in changed})


def _build(
    builder: tfds.core.DatasetBuilder,
    root: pathlib.Path,
    files: Mapping[str, pathlib.Path],
) -> None:
    # TensorFlow Datasets writes to a temporary folder and renames it; what it
    # unpacks goes to another one here, so that both are gone at the end.
    with (
        _temporary_folder(root) as unpacked,
        _manual_dir(builder, files, unpacked) as manual_dir,
    ):
        config = tfds.download.DownloadConfig(
            extract_dir=unpacked, manual_dir=manual_dir, try_download_gcs=False
        )
        try:
            with _quiet(builder):
                builder.download_and_prepare(
                    download_dir=unpacked, download_config=config
                )
        except OSError:
            # Another process was faster: its result is the same.
            if not builder.is_prepared():
                raise


def _temporary_folder(root: pathlib.Path) -> tempfile.TemporaryDirectory:
    try:
        root.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix=".unpacked-", dir=root)
    except OSError as error:
        raise InputError(
            f"Expected the data folder {root} to be one that can be written to. "
            f"Received: {error.strerror}. Set MTL_KERAS_DATA_DIR to another one."
        ) from error


@contextlib.contextmanager
def _quiet(builder: tfds.core.DatasetBuilder) -> Iterator[None]:
    """Context manager: silences one builder, and the progress bars of TFDS.

    Standard output and error stay as they are: other threads write to them meanwhile.
    """
    for name in ("_log_download_bytes", "_log_download_done"):
        setattr(builder, name, lambda: None)
    active = tqdm_utils._active
    tfds.display_progress_bar(enable=False)
    try:
        yield
    finally:
        tfds.display_progress_bar(enable=active)
