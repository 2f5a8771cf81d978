"""What a study shows beside its headline: by third of the session, digit, pair and image, and how long it took.

Rates and counts only: a p-value belongs to the comparisons that were planned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from app import stats, tally
from app.clusters import Floats
from app.observations import Seen, Stimuli, columns
from app.outcomes import COMPARED, COMPONENTS, NOT_ASKED
from app.stats import Rate
from app.tally import Frame, Sums

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


def views(frame: Frame, sums: Sums, people: Sequence[Seen]) -> Views:
    """The views over one pack's answers, of which `sums` are the sums of `tally.summed_rates` over `people`."""
    models, labels = frame.models, frame.stimuli.labels
    thirds = _rates(sums, "third")
    by_source, by_target = (_rates(sums, name)[0] for name in ("source", "target"))
    label_ms, verdict_ms = _times(frame, people)
    return Views(
        components={
            model: dict(zip(COMPONENTS, own, strict=True))
            for model, own in zip(models, sums.arrays["components"].tolist(), strict=True)
        },
        thirds={
            model: {name: of[3 * i : 3 * i + 3] for name, of in zip(COMPARED, thirds, strict=True)}
            for i, model in enumerate(models)
        },
        by_source=_by_label(models, labels, by_source),
        by_target=_by_label(models, labels, by_target),
        pairs={
            model: [[(count, n) for count, n in row] for row in table]
            for model, table in zip(models, sums.arrays["pairs"].tolist(), strict=True)
        },
        label_ms=label_ms,
        verdict_ms=verdict_ms,
        images=_images(frame.stimuli, sums),
    )


def _rates(sums: Sums, name: str) -> list[list[Rate]]:
    return [[stats.rate(clustered) for clustered in of] for of in tally.rates(sums, name)]


def _by_label(models: Sequence[str], labels: Sequence[str], rates: list[Rate]) -> dict[str, dict[str, Rate]]:
    size = len(labels)
    return {
        model: dict(zip(labels, rates[i * size : (i + 1) * size], strict=True))
        for i, model in enumerate(models)
    }


def _times(frame: Frame, people: Sequence[Seen]) -> tuple[dict[str, Times], dict[str, Times]]:
    """How long labels and verdicts took, by model."""
    answers = columns(people)
    stimuli = frame.stimuli
    labels, verdicts = {}, {}
    for model in frame.models:
        own = np.array([name == model for name in stimuli.model]) & (stimuli.pack == frame.pack)
        mask = own[answers.stimulus]
        labels[model] = times(answers.label_ms[mask])
        verdicts[model] = times(answers.verdict_ms[mask & (answers.verdict != NOT_ASKED)])
    return labels, verdicts


def times(ms: Floats) -> Times:
    """Quantiles (linear interpolation) of response times of shape (answers,); NaN was not measured."""
    measured = ms[~np.isnan(ms)]
    if not measured.size:
        return Times(0, None)
    return Times(measured.size, np.quantile(measured, QUANTILES).tolist())


def _images(stimuli: Stimuli, sums: Sums) -> list[ImageResult]:
    """Every image that somebody has labeled, in the order of the packs."""
    names = (*stimuli.labels, "none")
    numbers = sums.arrays["stimuli"]
    shown = np.flatnonzero(numbers[:, 0])
    first, second = (sums.arrays[name][shown].tolist() for name in ("first", "second"))
    results = []
    for place, i in enumerate(shown.tolist()):
        n, fooled, hits, counted, judged, yes = numbers[i].tolist()
        low, high = stats.exact_interval(hits, counted) if counted else (0.0, 1.0)
        results.append(
            ImageResult(
                sha256=stimuli.sha256[i],
                model=stimuli.model[i],
                source_index=int(stimuli.source_index[i]),
                source_label=stimuli.labels[stimuli.source[i]],
                target_label=stimuli.labels[stimuli.target[i]],
                n=n,
                fooled=fooled,
                reasonable=hits,
                counted=counted,
                low=low,
                high=high,
                judged=judged,
                judged_reasonable=yes,
                first={name: k for name, k in zip(names, first[place], strict=True) if k},
                second={name: k for name, k in zip(names, second[place], strict=True) if k},
            )
        )
    return results
