"""The published table of the paper, to stand beside a study's own (REFERENCE.md; recalled, not read again)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """Answers of 11 participants about one model: how many fooled, how many reasonable, of how many."""

    fooled: int
    reasonable: int
    n: int


# Ross & Doshi-Velez, AAAI 2018. Percentages with the only denominators that give them and sum to 11 x 10 a model.
TABLES: dict[tuple[str, str], dict[str, Published]] = {
    ("mnist", "jsma"): {
        "undefended": Published(1, 13, 50),
        "distilled": Published(0, 12, 51),
        "gradient_regularized": Published(9, 23, 55),
    },
    ("svhn", "tgsm"): {
        "undefended": Published(24, 38, 60),
        "distilled": Published(1, 15, 59),
        "gradient_regularized": Published(25, 44, 54),
    },
}
UNREASONABLE_P = {("mnist", "jsma"): 0.07, ("svhn", "tgsm"): 0.08}
"""The paper's p for the unreasonable rates of undefended against gradient_regularized; its test is not known."""


def kind_of(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Data set and attack of a pack, by which the paper's table is found."""
    return _name(manifest.get("dataset")), _name(manifest.get("attack"))


def _name(record: object) -> str:
    """Empty where the manifest, of which the import checks only what the study rests on, has none."""
    return str(record.get("name", "")) if isinstance(record, dict) else ""
