"""Files that may stand in for the original ones of a data set.

Some data sets are passed on as files of other bytes than those that TensorFlow
Datasets has checksums of. Those that are known are listed here with checksums of
their own, so that they are verified as strictly as the original ones.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Variant:
    """A file that stands in for an original one.

    Attributes:
        filename: Its name; `.xz` is unpacked.
        checksum: SHA-256 of the file as it is.
        note: How the data differ.
    """

    filename: str
    checksum: str
    note: str


VARIANTS = {
    "aclImdb_v1.tar.gz": Variant(
        "aclImdb_subset_19246_1200.tar.gz",
        "ea71aff21867b87e0c90d709b917441b44691b9903c1e304c21b83a73ea904ea",
        "A balanced subset: 19,246 reviews for training and 1,200 for testing.",
    ),
    "train-v1.1.json": Variant(
        "train-v1.1.rebuilt.json.xz",
        "08881242e63f31cdde6f4ddfdce4ae16d8808576867b75a6fed623b44f47b63d",
        "`answer_start` is the first occurrence, ids are made up.",
    ),
    "dev-v1.1.json": Variant(
        "dev-v1.1.rebuilt.json.xz",
        "2c0ae04a785348fbe4edaff7716dbb6db3ebe62fba4cee01de1226db366b2ca2",
        "`answer_start` is the first occurrence.",
    ),
}
"""By the name of the original file."""
