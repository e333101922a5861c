"""What `viny verify` found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

WRONG, MISSING, NOTE = "wrong", "missing", "note"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, missing or worth noting.

    Attributes:
        severity: WRONG, MISSING or NOTE.
        file: relative to the study's folder.
        message: what was expected, what was found and what to do about it, on one line.
    """

    severity: str
    file: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.file}: {self.message}"


@dataclass
class Report:
    """What was found, and how much was checked.

    Attributes:
        findings: in the order of the checks.
        files: how many were checked, each counted once.
        bytes: in these files.
        seconds: how long the checks took.
    """

    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def count(self, severity: str) -> int:
        """How many findings have a severity."""
        return sum(f.severity == severity for f in self.findings)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong or missing."""
        return all(f.severity == NOTE for f in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON, with the number of findings by severity."""
        counts = {severity: self.count(severity) for severity in (WRONG, MISSING, NOTE)}
        about = {"files": self.files, "bytes": self.bytes, "seconds": self.seconds}
        return {"findings": [asdict(f) for f in self.findings], **counts, **about}

    def summary(self) -> str:
        """How much was checked and how many findings there are, on one line."""
        return (
            f"{self.files} files, {self.bytes:,} bytes checked in {self.seconds:.1f} s: {self.count(WRONG)} wrong, "
            f"{self.count(MISSING)} missing, {self.count(NOTE)} notes"
        )
