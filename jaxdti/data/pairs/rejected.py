"""What reading a table of pairs met: rows of each part, those that were rejected, and why."""

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxdti.errors import DataError
from jaxdti.files import atomic


class RejectedRow(NamedTuple):
    """A line of ``rejected.csv``, and the kind it is counted under."""

    file: str
    row: int  # one-based data row
    field: str  # the column
    value: str
    reason: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class ReadReport:
    """What reading met: counts of rows, unless said otherwise."""

    read: dict[str, int]  # by part
    kept: dict[str, int]  # by part
    rejected: tuple[RejectedRow, ...]
    duplicates: int  # classification: rows dropped because the same pair with the same label stands before them
    replicates: int  # regression: rows that measure a pair again
    replicates_averaged: bool  # whether they became one row of the mean, or were all kept
    proteins_cut: int  # distinct proteins longer than max_residues
    residues_unknown: int  # letters that became X, over the distinct proteins
    proteins_unknown: int  # distinct proteins with such letters
    stereo_twins: int  # distinct drugs that differ from another one in stereochemistry or isotopes only

    @property
    def rejected_by_kind(self) -> dict[str, int]:
        """Rejected rows of each kind, the most frequent first."""
        return dict(Counter(row.kind for row in self.rejected).most_common())

    def write_rejected(self, path: Path) -> None:
        """Writes ``rejected.csv`` with the columns file, row, field, value, reason; whole or not at all."""
        with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(RejectedRow._fields[:-1])
            writer.writerows(row[:-1] for row in self.rejected)

    def lines(self) -> list[str]:
        """The summary for the user: rows by part, then one line for each thing that happened."""
        lines = [f"{part}: {self.read[part]:,} rows read, {self.kept[part]:,} kept" for part in self.read]
        if self.rejected:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.rejected_by_kind.items())
            lines.append(f"rows rejected: {len(self.rejected):,} ({kinds})")
        if self.duplicates:
            lines.append(f"duplicate rows dropped: {self.duplicates:,}")
        if self.replicates:
            fate = "averaged" if self.replicates_averaged else "kept"
            lines.append(f"replicate measurements {fate}: {self.replicates:,}")
        if self.proteins_cut:
            lines.append(f"proteins cut at the end: {self.proteins_cut:,}")
        if self.residues_unknown:
            lines.append(f"unknown residues set to X: {self.residues_unknown:,} in {self.proteins_unknown:,} proteins")
        if self.stereo_twins:
            lines.append(
                f"warning: {self.stereo_twins:,} drugs differ from another one in stereochemistry or isotopes only, "
                "which the features cannot tell apart"
            )
        return lines


class TooManyRejected(DataError):
    """More than ``data.max_rejected`` of the rows, or all of a file's, were rejected; ``report`` lists them."""

    def __init__(self, message: str, report: ReadReport):
        super().__init__(message)
        self.report = report
