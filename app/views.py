"""What a study shows beside its headline: by third of the session, digit, pair and image, and how long it took.

Rates and counts only: a p-value belongs to the comparisons that were planned.
"""

from dataclasses import dataclass

import numpy as np

from app import outcomes, stats
from app.observations import ScoredAnswers, Stimuli
from app.outcomes import COMPARED, COMPONENTS, NONE, NOT_ASKED, Mask
from app.stats import Floats, Ints, Rate

THIRDS = ("first third", "middle third", "last third")
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Times:
    """Response times in ms: how many could be measured, and their QUANTILES (None where there are none)."""

    n: int
    quantiles: list[float] | None


@dataclass(frozen=True)
class ImageResult:
    """What people said about one adversarial image; `low` and `high` are Clopper and Pearson's."""

    sha256: str
    model: str
    source_index: int
    source_label: str
    target_label: str
    n: int
    fooled: int
    reasonable: int  # answers with the primary outcome,
    counted: int  # of those that could have it
    low: float
    high: float
    judged: int
    judged_reasonable: int
    first: dict[str, int]  # label or "none" -> answers
    second: dict[str, int]


@dataclass(frozen=True)
class Views:
    """The views of one pack. Keys are models, then labels where a view goes by digit."""

    components: dict[str, dict[str, int]]  # COMPONENTS -> answers
    thirds: dict[str, dict[str, list[Rate]]]  # COMPARED -> one rate for each of THIRDS
    by_source: dict[str, dict[str, Rate]]  # of the primary outcome
    by_target: dict[str, dict[str, Rate]]
    pairs: dict[str, list[list[tuple[int, int]]]]  # [source][target] -> (count, n) of the primary outcome
    label_ms: dict[str, Times]
    verdict_ms: dict[str, Times]
    images: list[ImageResult]


def views(found: ScoredAnswers, stimuli: Stimuli, models: list[str], outcome: str, trials: int) -> Views:
    """The views over one pack's answers, for the primary `outcome`.

    `trials` is how many main trials a session has: its thirds are by a trial's place among them.
    """
    of_model = {model: found.where(found.model == i) for i, model in enumerate(models)}
    return Views(
        components={model: _components(own) for model, own in of_model.items()},
        thirds={
            model: {
                name: _by(own, np.minimum(own.answers.rank * 3 // trials, 2), 3, name) for name in COMPARED
            }
            for model, own in of_model.items()
        },
        by_source={
            model: dict(zip(stimuli.labels, _by(own, own.source, len(stimuli.labels), outcome), strict=True))
            for model, own in of_model.items()
        },
        by_target={
            model: dict(zip(stimuli.labels, _by(own, own.target, len(stimuli.labels), outcome), strict=True))
            for model, own in of_model.items()
        },
        pairs={model: _pairs(own, len(stimuli.labels), outcome) for model, own in of_model.items()},
        label_ms={model: times(own.answers.label_ms) for model, own in of_model.items()},
        verdict_ms={
            model: times(own.answers.verdict_ms[own.answers.verdict != NOT_ASKED])
            for model, own in of_model.items()
        },
        images=_images(found, stimuli, outcome),
    )


def _components(found: ScoredAnswers) -> dict[str, int]:
    parts = outcomes.components(found.answers.first, found.answers.second, found.source, found.target)
    return {name: int(np.count_nonzero(parts[name])) for name in COMPONENTS}


def _by(found: ScoredAnswers, group: Ints, groups: int, outcome: str) -> list[Rate]:
    """The rate in each of the groups 0, 1, ...; `group` has shape (answers,)."""
    return [stats.rate(found.sample(outcome, group == i)) for i in range(groups)]


def times(ms: Floats) -> Times:
    """Quantiles (linear interpolation) of response times of shape (answers,); NaN was not measured."""
    measured = ms[~np.isnan(ms)]
    if not measured.size:
        return Times(0, None)
    return Times(measured.size, np.quantile(measured, QUANTILES).tolist())


def _pairs(found: ScoredAnswers, labels: int, outcome: str) -> list[list[tuple[int, int]]]:
    hit, counted = found.outcomes[outcome].hit, found.outcomes[outcome].counted
    pair = found.source * labels + found.target
    n = np.bincount(pair[counted], minlength=labels**2).reshape(labels, labels)
    count = np.bincount(pair[counted & hit], minlength=labels**2).reshape(labels, labels)
    return [list(zip(*rows, strict=True)) for rows in zip(count.tolist(), n.tolist(), strict=True)]


def _images(found: ScoredAnswers, stimuli: Stimuli, outcome: str) -> list[ImageResult]:
    """Every image that somebody has labeled, in the order of the packs."""
    rows = found.answers.stimulus
    size = len(stimuli.sha256)

    def count(mask: Mask) -> list[int]:
        counted: list[int] = np.bincount(rows[mask], minlength=size).tolist()
        return counted

    of_outcome = found.outcomes[outcome]
    direct = found.outcomes["mistake_reasonable_direct"]
    n: list[int] = np.bincount(rows, minlength=size).tolist()
    counted, hits = count(of_outcome.counted), count(of_outcome.counted & of_outcome.hit)
    fooled = count(found.outcomes["human_fooled"].hit)
    judged, yes = count(direct.counted), count(direct.counted & direct.hit)
    first = _tally(rows, found.answers.first, stimuli.labels)
    second = _tally(rows, found.answers.second, stimuli.labels)
    results = []
    for i in np.flatnonzero(n).tolist():
        low, high = stats.exact_interval(hits[i], counted[i]) if counted[i] else (0.0, 1.0)
        results.append(
            ImageResult(
                sha256=stimuli.sha256[i],
                model=stimuli.model[i],
                source_index=int(stimuli.source_index[i]),
                source_label=stimuli.labels[stimuli.source[i]],
                target_label=stimuli.labels[stimuli.target[i]],
                n=n[i],
                fooled=fooled[i],
                reasonable=hits[i],
                counted=counted[i],
                low=low,
                high=high,
                judged=judged[i],
                judged_reasonable=yes[i],
                first=first.get(i, {}),
                second=second.get(i, {}),
            )
        )
    return results


def _tally(rows: Ints, codes: Ints, labels: tuple[str, ...]) -> dict[int, dict[str, int]]:
    """Image -> label -> answers, in the order of the labels, "none" last."""
    names = (*labels, "none")
    asked = codes != NOT_ASKED
    order = np.where(codes == NONE, len(labels), codes)
    counts = np.bincount((rows * len(names) + order)[asked]).tolist()
    found: dict[int, dict[str, int]] = {}
    for place, n in enumerate(counts):
        if n:
            found.setdefault(place // len(names), {})[names[place % len(names)]] = n
    return found
