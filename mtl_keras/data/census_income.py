"""TensorFlow Datasets builder for UCI's Census-Income (KDD)."""

from __future__ import annotations

import gzip
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mtl_keras.data import columns

_DESCRIPTION = """
Answers of 299,285 people to the Current Population Surveys of 1994 and 1995, made
for prediction of income. The 99,762 original test rows are split 1:1, every other
row, into validation and test.
"""

_CITATION = """
@misc{census1994income,
  title={Census-Income (KDD)}, year={2000},
  howpublished={UCI Machine Learning Repository}, doi={10.24432/C5N30T}
}
"""

_ADDRESS = "https://archive.ics.uci.edu/ml/machine-learning-databases/census-income-mld"
_FILES = {
    "train": "census-income.data.gz",
    "test": "census-income.test.gz",
}
_SIZES = {"census-income.data.gz": 5_988_689, "census-income.test.gz": 3_261_416}
_CHECKSUMS = {
    "census-income.data.gz": (
        "3a8265c042a3a804761b804e3fbd2b44d26780fc11848cdc499a439b6ec209c2"
    ),
    "census-income.test.gz": (
        "5ac4cacd3ca9f1ecb10de1a0a41e4ac68fdc419e3fec190f5c0c6cc03b2ea659"
    ),
}

# The original files' columns in their order, less the last one, the income.
_NAMES = (
    "age",
    "class_of_worker",
    "industry_code",
    "occupation_code",
    "education",
    "wage_per_hour",
    "enrolled_in_education",
    "marital_status",
    "major_industry",
    "major_occupation",
    "race",
    "hispanic_origin",
    "sex",
    "union_member",
    "reason_for_unemployment",
    "employment_status",
    "capital_gains",
    "capital_losses",
    "dividends",
    "tax_filer_status",
    "previous_region",
    "previous_state",
    "detailed_household",
    "household_summary",
    "instance_weight",
    "migration_msa",
    "migration_region",
    "migration_within_region",
    "same_house_a_year_ago",
    "previous_residence_in_sunbelt",
    "persons_worked_for_employer",
    "parents_under_18",
    "father_birth_country",
    "mother_birth_country",
    "own_birth_country",
    "citizenship",
    "own_business",
    "veterans_questionnaire",
    "veterans_benefits",
    "weeks_worked",
    "year",
)
_NUMBERS = (
    "age",
    "wage_per_hour",
    "capital_gains",
    "capital_losses",
    "dividends",
    "persons_worked_for_employer",
    "weeks_worked",
)
# How many people a row stands for: not a property of the person, and its
# documentation asks that classifiers leave it alone.
_NO_INPUT = ("instance_weight",)

_BELOW_COLLEGE = frozenset(
    {
        "Children",
        "Less than 1st grade",
        "1st 2nd 3rd or 4th grade",
        "5th or 6th grade",
        "7th and 8th grade",
        "9th grade",
        "10th grade",
        "11th grade",
        "12th grade no diploma",
        "High school graduate",
    }
)

TASKS = ("income", "never_married", "college")
"""Names of the labels."""

TASK_COLUMNS = {"never_married": "marital_status", "college": "education"}
"""The input that a label is made from; `income` is no input."""


class CensusIncome(tfds.core.GeneratorBasedBuilder):
    """Census-Income (KDD), labelled for three binary tasks.

    Features: the 40 columns of the original files other than income and instance
    weight, as text (`""` never occurs) or float32, and

    - `income`: 1 where it is above 50,000 dollars.
    - `never_married`: 1 where `marital_status` is "Never married".
    - `college`: 1 where `education` is "Some college but no degree" or more.

    A model of a task must not read the column that its label is made from:
    `TASK_COLUMNS`.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Census-Income (KDD) of the UCI Machine Learning Repository: "
        "census-income.data.gz and census-income.test.gz."
    )

    @property
    def url_infos(self) -> dict[str, Any]:
        """The original files: address to size, SHA-256 and name."""
        return {
            f"{_ADDRESS}/{name}": tfds.core.download.checksums.UrlInfo(
                size=_SIZES[name], checksum=_CHECKSUMS[name], filename=name
            )
            for name in _FILES.values()
        }

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {
            name: tfds.features.Scalar(np.float32)
            if name in _NUMBERS
            else tfds.features.Text()
            for name in _NAMES
            if name not in _NO_INPUT
        }
        features |= {task: tfds.features.Scalar(np.int64) for task in TASKS}
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            citation=_CITATION,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        folder = pathlib.Path(dl_manager.manual_dir)
        tables = {split: read(folder / name) for split, name in _FILES.items()}
        described = {
            name: (
                columns.number(values)
                if name in _NUMBERS
                else columns.category(values.astype(str))
            )
            for name, values in tables["train"].items()
            if name not in TASKS
        }
        self.info.metadata.update(columns.to_metadata(described, TASKS))
        halves = {"validation": slice(0, None, 2), "test": slice(1, None, 2)}
        splits = {"train": tables["train"]} | {
            split: {name: values[half] for name, values in tables["test"].items()}
            for split, half in halves.items()
        }
        return {
            split: self._generate_examples(table) for split, table in splits.items()
        }

    def _generate_examples(
        self, table: dict[str, np.ndarray]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        rows = zip(*(values.tolist() for values in table.values()), strict=True)
        for key, row in enumerate(rows):
            yield key, dict(zip(table, row, strict=True))


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads an original file.

    Args:
        path: A gzipped file of 42 comma-separated fields a row.

    Returns:
        `{feature: [rows]}`, float32 for numbers, int64 for labels, else text.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        # The income ends in a full stop; no field holds a comma.
        rows = [
            [field.strip() for field in line.rstrip(".\n ").split(",")] for line in file
        ]
    *fields, income = (np.array(field, object) for field in zip(*rows, strict=True))
    table = dict(zip(_NAMES, fields, strict=True))
    labels = {
        "income": income != "- 50000",
        "never_married": table["marital_status"] == "Never married",
        "college": np.array([e not in _BELOW_COLLEGE for e in table["education"]]),
    }
    return {
        **{
            name: values.astype(np.float32) if name in _NUMBERS else values
            for name, values in table.items()
            if name not in _NO_INPUT
        },
        **{task: label.astype(np.int64) for task, label in labels.items()},
    }
