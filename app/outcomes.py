"""The outcomes of an answer: the paper's, their components, other ways to count, and the chance level beside each.

Answers are coded: a label is its index in the pack's labels (>= 0); `NONE` and `NOT_ASKED` are below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.clusters import Ints

NONE = -1  # "none is plausible"
NOT_ASKED = -2  # no answer to this question: it is not asked, or not yet

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """How an outcome reads on a page, and which outcome is its chance level (None: there is none)."""

    title: str
    meaning: str
    chance: str | None = None
    descriptive: bool = False  # its denominator hangs on the answers: rates of models cannot be compared


# The order is that of the table.
OUTCOMES = {
    "human_fooled": Outcome("human fooled", "the first label is the network’s answer", "placebo_fooled"),
    "mistake_reasonable": Outcome(
        "mistake reasonable",
        "the network’s answer is the first or second label, or no label is plausible (the paper’s)",
        "placebo_reasonable",
    ),
    "mistake_reasonable_direct": Outcome(
        "judged reasonable when asked", "yes to the network’s answer, of the images judged so far"
    ),
    "reasonable_none_unreasonable": Outcome(
        "reasonable, “none” counted as no",
        "the network’s answer is the first or second label",
        "placebo_none_unreasonable",
    ),
    "reasonable_none_dropped": Outcome(
        "reasonable, “none” left out",
        "the same, of the answers that name a label",
        "placebo_none_dropped",
        descriptive=True,
    ),
    "reasonable_not_fooled": Outcome(
        "reasonable among the not fooled",
        "the second label is the network’s answer, or none, where the first is another",
        "placebo_not_fooled",
        descriptive=True,
    ),
    "target_first": Outcome("target named first", "the same as human fooled", "placebo_fooled"),
    "target_second": Outcome(
        "target named second", "the second label is the network’s answer", "placebo_second"
    ),
    "none_plausible": Outcome("none plausible", "no label is plausible"),
    "kept_source": Outcome("source label kept", "the first label is the original image’s"),
}
PLACEBOS = {
    "placebo_fooled": "human_fooled",
    "placebo_reasonable": "mistake_reasonable",
    "placebo_none_unreasonable": "reasonable_none_unreasonable",
    "placebo_none_dropped": "reasonable_none_dropped",
    "placebo_not_fooled": "reasonable_not_fooled",
    "placebo_second": "target_second",
}
"""Chance level -> the outcome whose scoring it is, against a label that is neither source nor target."""

COMPARED = ("human_fooled", "mistake_reasonable", "mistake_reasonable_direct")
COMPONENTS = {
    "target_first": "network’s answer first",
    "target_second": "network’s answer second",
    "none": "none plausible",
    "source": "original digit, network’s answer not named",
    "other": "another label",
}
"""The parts that every answer falls into, one each."""


@dataclass(frozen=True)
class Scored:
    """Which answers had the outcome, and which could have had it (`counted`); both of shape (answers,)."""

    hit: Mask
    counted: Mask


def score(
    first: Ints, second: Ints, verdict: Ints, source: Ints, target: Ints, placebo: Ints
) -> dict[str, Scored]:
    """Every outcome and chance level of coded answers; all arrays have shape (answers,).

    `verdict` is 1 (reasonable), 0 or NOT_ASKED. REFERENCE: Ross & Doshi-Velez (AAAI 2018), the human-subject study.
    """
    scored = _against(first, second, target)
    scored["mistake_reasonable_direct"] = Scored(verdict == 1, verdict != NOT_ASKED)
    scored["target_first"] = scored["human_fooled"]
    scored["kept_source"] = Scored(first == source, np.ones(first.shape, np.bool_))
    of_placebo = _against(first, second, placebo)
    return {name: scored[name] for name in OUTCOMES} | {
        name: of_placebo[outcome] for name, outcome in PLACEBOS.items()
    }


def components(first: Ints, second: Ints, source: Ints, target: Ints) -> dict[str, Mask]:
    """COMPONENTS of coded answers: each answer is in exactly one, the earliest that fits."""
    left = np.ones(first.shape, np.bool_)
    found: dict[str, Mask] = {}
    for name, fits in (
        ("target_first", first == target),
        ("target_second", second == target),
        ("none", first == NONE),
        ("source", first == source),
        ("other", left),
    ):
        found[name] = left & fits
        left = left & ~fits
    return found


def _against(first: Ints, second: Ints, target: Ints) -> dict[str, Scored]:
    every = np.ones(first.shape, np.bool_)
    none, is_first, is_second = first == NONE, first == target, second == target
    named = is_first | is_second
    return {
        "human_fooled": Scored(is_first, every),
        "mistake_reasonable": Scored(named | none, every),
        "reasonable_none_unreasonable": Scored(named, every),
        "reasonable_none_dropped": Scored(named, ~none),
        "reasonable_not_fooled": Scored(is_second | none, ~is_first),
        "target_second": Scored(is_second, second != NOT_ASKED),
        "none_plausible": Scored(none, every),
    }
