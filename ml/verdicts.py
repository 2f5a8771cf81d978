"""What a claim of the paper is judged by: numbers with intervals, each against a condition fixed beforehand."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ml.intervals import Estimate

Verdict = Literal["holds", "does not hold", "undecided"]

# How a number is to be read: a share, a difference of shares, a ratio, or a plain number.
Unit = Literal["share", "points", "factor", "number"]


@dataclass(frozen=True)
class Number:
    """An estimate and, where the claim hangs on it, what was wanted of it and whether that is so."""

    what: str
    estimate: Estimate
    unit: Unit
    wanted: str = ""
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Claim:
    """A claim of the paper in our words, the criterion by which it is judged, and the verdict.

    `numbers` whose verdict is None only inform. `reason` says why a verdict is undecided where no interval is to
    blame; `figures` are keys of `captions.CAPTIONS`.
    """

    id: str
    title: str
    claim: str
    criterion: str
    verdict: Verdict
    numbers: tuple[Number, ...]
    figures: tuple[str, ...]
    reason: str = ""


def above(what: str, estimate: Estimate, bound: float, unit: Unit) -> Number:
    """Holds where the whole interval lies above the bound, fails where it lies below."""
    verdict: Verdict = (
        "holds" if estimate.low > bound else "does not hold" if estimate.high < bound else "undecided"
    )
    return Number(what, estimate, unit, f"more than {shown(bound, unit)}", verdict)


def below(what: str, estimate: Estimate, bound: float, unit: Unit) -> Number:
    """Holds where the whole interval lies below the bound, fails where it lies above."""
    verdict: Verdict = (
        "holds" if estimate.high < bound else "does not hold" if estimate.low > bound else "undecided"
    )
    return Number(what, estimate, unit, f"less than {shown(bound, unit)}", verdict)


def within(what: str, estimate: Estimate, lowest: float, highest: float, unit: Unit) -> Number:
    """Holds where the whole interval lies between the two, fails where it lies outside."""
    if lowest <= estimate.low and estimate.high <= highest:
        verdict: Verdict = "holds"
    elif estimate.high < lowest or estimate.low > highest:
        verdict = "does not hold"
    else:
        verdict = "undecided"
    return Number(what, estimate, unit, f"between {shown(lowest, unit)} and {shown(highest, unit)}", verdict)


def together(numbers: Iterable[Number]) -> Verdict:
    """A claim holds where each of its conditions does, and fails where one of them fails."""
    verdicts = [number.verdict for number in numbers if number.verdict is not None]
    if not verdicts:
        return "undecided"
    if "does not hold" in verdicts:
        return "does not hold"
    return "undecided" if "undecided" in verdicts else "holds"


def shown(value: float, unit: Unit) -> str:
    """A value as the report prints it, such as "97.2 %", "−3.0 points" or "× 50"."""
    words = {"share": "{} %", "points": "{} points", "factor": "× {}", "number": "{}"}[unit]
    return words.format(_digits(value, unit))


def shown_interval(low: float, high: float, unit: Unit) -> str:
    """An interval as the report prints it, such as "96.0 to 98.1 %"."""
    words = {"share": "{} to {} %", "points": "{} to {} points", "factor": "× {} to {}", "number": "{} to {}"}
    return words[unit].format(_digits(low, unit), _digits(high, unit))


def _digits(value: float, unit: Unit) -> str:
    if unit in ("share", "points"):
        digits = f"{100 * value:.1f}"
    elif value and not 1e-3 <= abs(value) < 1e5:
        digits = f"{value:.1e}"
    else:
        digits = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if float(digits) == 0:
        digits = digits.lstrip("-")
    elif unit == "points" and value > 0:
        digits = f"+{digits}"
    return digits.replace("-", "−")
