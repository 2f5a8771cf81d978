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


def views(
    found: ScoredAnswers,
    chosen: Mask,
    stimuli: Stimuli,
    models: list[str],
    outcome: str,
    trials: int,
) -> Views:
    """The views over the answers that `chosen` (shape (answers,)) selects, for the primary `outcome`.

    `trials` is how many main trials a session has: its thirds are by a trial's place among them.
    """
    third = np.minimum(found.answers.rank * 3 // trials, 2)
    of_model = {model: chosen & (found.model == i) for i, model in enumerate(models)}
    parts = outcomes.components(found.answers.first, found.answers.second, found.source, found.target)

    def rate(mask: Mask, name: str = outcome) -> Rate:
        return stats.rate(found.sample(name, mask))

    return Views(
        components={
            model: {name: int(np.count_nonzero(mask & parts[name])) for name in COMPONENTS}
            for model, mask in of_model.items()
        },
        thirds={
            model: {name: [rate(mask & (third == i), name) for i in range(3)] for name in COMPARED}
            for model, mask in of_model.items()
        },
        by_source={
            model: {label: rate(mask & (found.source == i)) for i, label in enumerate(stimuli.labels)}
            for model, mask in of_model.items()
        },
        by_target={
            model: {label: rate(mask & (found.target == i)) for i, label in enumerate(stimuli.labels)}
            for model, mask in of_model.items()
        },
        pairs={model: _pairs(found, mask, len(stimuli.labels), outcome) for model, mask in of_model.items()},
        label_ms={model: times(found.answers.label_ms[mask]) for model, mask in of_model.items()},
        verdict_ms={
            model: times(found.answers.verdict_ms[mask & (found.answers.verdict != NOT_ASKED)])
            for model, mask in of_model.items()
        },
        images=_images(found, chosen, stimuli, outcome),
    )


def times(ms: Floats) -> Times:
    """Quantiles (linear interpolation) of response times of shape (answers,); NaN was not measured."""
    measured = ms[~np.isnan(ms)]
    if not measured.size:
        return Times(0, None)
    return Times(measured.size, np.quantile(measured, QUANTILES).tolist())


def _pairs(found: ScoredAnswers, mask: Mask, labels: int, outcome: str) -> list[list[tuple[int, int]]]:
    of_outcome = found.outcomes[outcome]
    counted = mask & of_outcome.counted
    pair = found.source * labels + found.target
    n = np.bincount(pair[counted], minlength=labels**2).reshape(labels, labels)
    count = np.bincount(pair[counted & of_outcome.hit], minlength=labels**2).reshape(labels, labels)
    return [list(zip(*rows, strict=True)) for rows in zip(count.tolist(), n.tolist(), strict=True)]


def _images(found: ScoredAnswers, chosen: Mask, stimuli: Stimuli, outcome: str) -> list[ImageResult]:
    """Every image that somebody has labelled, in the order of the packs."""
    rows = found.answers.stimulus
    size = len(stimuli.sha256)

    def count(mask: Mask) -> list[int]:
        counted: list[int] = np.bincount(rows[mask], minlength=size).tolist()
        return counted

    of_outcome = found.outcomes[outcome]
    direct = found.outcomes["mistake_reasonable_direct"]
    n, counted = count(chosen), count(chosen & of_outcome.counted)
    hits = count(chosen & of_outcome.counted & of_outcome.hit)
    fooled = count(chosen & found.outcomes["human_fooled"].hit)
    judged = count(chosen & direct.counted)
    yes = count(chosen & direct.counted & direct.hit)
    first = _tally(rows[chosen], found.answers.first[chosen], stimuli.labels)
    second = _tally(rows[chosen], found.answers.second[chosen], stimuli.labels)
    results = []
    for i in np.unique(rows[chosen]).tolist():
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
