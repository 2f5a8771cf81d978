"""What the dashboard and the report show of a study's results, made ready for their templates."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import charts, figures, published
from app.definition import ALPHA
from app.evaluations import as_text
from app.models import Pack, StudyPack
from app.outcomes import OUTCOMES
from app.printed import p_value, percent, points
from app.published import Published
from app.results import Comparison, PackResults, Results
from app.views import ImageResult

FIGURE_OUTCOMES = {
    "human_fooled": "Human fooled",
    "mistake_reasonable": "Mistake reasonable",
    "mistake_reasonable_direct": "Judged reasonable when asked",
}
# The primary comparison as a sentence: "<whose> A <did> ... than <others'> B".
FINDINGS = {
    "human_fooled": ("images made for", "fooled participants", "those made for"),
    "mistake_reasonable": ("mistakes of", "counted as reasonable", "those of"),
    "mistake_reasonable_direct": ("mistakes of", "were judged reasonable", "those of"),
}
GALLERY = 6  # images at either end,
ENOUGH = 5  # of those with at least so many answers: fewer cannot tell images apart


@dataclass(frozen=True)
class Data:
    """What a pack's images were made from, as its manifest says it; "" where it does not."""

    name: str
    source: str
    note: str  # that the files are only a part of the published set
    licence: str


@dataclass(frozen=True)
class PackSheet:
    """One pack's part of the page; without `results.views` (masked) there are no figures and no images."""

    name: str
    data: Data
    results: PackResults
    finding: str | None  # the primary comparison as a sentence, where it is this pack's
    notes: list[str]  # what the intervals cannot account for
    figures: dict[str, str]  # name -> inline SVG
    convincing: list[ImageResult]
    unconvincing: list[ImageResult]
    published: dict[str, Published] | None
    published_p: float | None


@dataclass(frozen=True)
class Sheet:
    """The page's context."""

    results: Results
    packs: list[PackSheet]
    not_asked: frozenset[str]  # outcomes that the study does not ask about
    dates: tuple[datetime | None, datetime | None]  # when the first and the last began


def sheet(session: Session, results: Results) -> Sheet:
    """Everything that is shown; figures are drawn here."""
    not_asked = frozenset(name for name in OUTCOMES if not results.definition.asks(name))
    manifests = {
        pack.name: pack.manifest
        for pack in session.scalars(
            select(Pack)
            .join(StudyPack, StudyPack.pack_id == Pack.id)
            .where(StudyPack.study_id == results.study.id)
        )
    }
    began = [person.started_at for person in results.progress]
    return Sheet(
        results=results,
        packs=[_pack_sheet(results, name, manifests[name], not_asked) for name in results.packs],
        not_asked=not_asked,
        dates=(min(began, default=None), max(began, default=None)),
    )


def _pack_sheet(
    results: Results, name: str, manifest: Mapping[str, Any], not_asked: frozenset[str]
) -> PackSheet:
    pack, kind = results.packs[name], published.kind_of(manifest)
    data = manifest.get("dataset")
    data = data if isinstance(data, dict) else {}
    images = [image for image in pack.views.images if image.counted >= ENOUGH] if pack.views else []
    by_low = sorted(images, key=lambda i: (-i.low, -i.reasonable, i.sha256))
    by_high = sorted(images, key=lambda i: (i.high, i.reasonable, i.sha256))
    return PackSheet(
        name=name,
        data=Data(**{field.name: as_text(data.get(field.name)) for field in fields(Data)}),
        results=pack,
        finding=next((finding(results, c) for c in pack.comparisons if c.primary), None),
        notes=_notes(pack) if pack.views else [],
        figures=_figures(results, name, pack, not_asked),
        convincing=by_low[:GALLERY],
        unconvincing=by_high[:GALLERY],
        published=published.TABLES.get(kind),
        published_p=published.UNREASONABLE_P.get(kind),
    )


def finding(results: Results, primary: Comparison) -> str:
    """The primary comparison in a few sentences of plain English, with its scope and what weakens it.

    It is the look that decided, or the last one reached; only a study that was unmasked before any look has
    to do with `primary`, which is over all who are there so far.
    """
    reached = [look for look in results.looks if look.found]
    look = next((look for look in reached if look.crossed), reached[-1] if reached else None)
    c = look.found if look and look.found else primary
    if c.difference is None or c.p is None or c.rate_a is None or c.rate_b is None:
        return (
            "No complete, included participant has answered about both models of the primary comparison yet."
        )
    target = results.definition.target_participants
    early = "It was looked at before the time that was fixed, so its p decides nothing."
    said = [_measured(c), _verdict(c, look.boundary) if look else early]
    said.append("This speaks about new participants and these images.")
    if c.p_new_images is not None:
        said.append(f"For new participants and new images: p {_equals(c.p_new_images)}.")
    if c.low is None:
        reason = c.reason or ""
        said.append(f"There is no interval: {reason[:1].lower()}{reason[1:]}")
    if c.low is not None and c.high is not None and (c.low > 0 or c.high < 0) != (c.p <= ALPHA):
        said.append(
            "The interval and the test disagree about a difference of zero here; "
            "the test assumes less and is the one to report."
        )
    if (least := 0.5 ** (c.participants - 1)) > ALPHA:
        said.append(f"With {_people(c.participants)} this test cannot give a p below {p_value(least)}.")
    if look and look.n < target:
        said.append(
            f"It was decided at the declared look at {_people(look.n)}. A difference found by stopping early "
            "tends to be too large."
        )
    elif look and results.definition.looks:
        said.append("This is the last of the declared looks.")
    if look and not look.still:
        said.append("Somebody who took part in it has withdrawn since it was first shown.")
    if look and results.included > look.n and primary.difference is not None and primary.p is not None:
        said.append(
            f"Over all {results.included} who are complete and included by now the difference is "
            f"{points(primary.difference)} (p {_equals(primary.p)}, which is not corrected for going on)."
        )
    if results.unmasking:
        said.append(f"Unmasked early, at {results.unmasking.n} of {_people(target)}.")
    return " ".join(said)


def _measured(c: Comparison) -> str:
    assert c.difference is not None
    assert c.p is not None
    assert c.rate_a is not None
    assert c.rate_b is not None
    whose, did, others = FINDINGS[c.outcome]
    a, b = c.a.replace("_", " "), c.b.replace("_", " ")
    if c.difference == 0:
        how = "exactly as often"
    else:
        size = percent(abs(c.difference))
        size = "less than 0.1" if size == "0.0" else size
        how = f"{size} percentage points {'less' if c.difference < 0 else 'more'} often"
    interval = (
        f"95 % interval of the difference {points(c.low)} to {points(c.high)}; "
        if c.low is not None and c.high is not None
        else ""
    )
    return (
        f"Over {_people(c.participants)}, {whose} {a} {did} in {percent(c.rate_a)} % of answers, {others} {b} in "
        f"{percent(c.rate_b)} %: {how} ({interval}{'exact' if c.p_exact else 'conservative'} two-sided "
        f"sign-flip test, p {_equals(c.p)})."
    )


def _verdict(c: Comparison, boundary: float) -> str:
    """What p says, held against the boundary that was fixed beforehand."""
    assert c.p is not None
    limit = f"{boundary:.2g}" if boundary == ALPHA else p_value(boundary)
    if c.p <= boundary:
        verdict = f"That is more than chance explains, at the level of {limit} that was fixed beforehand."
    else:
        verdict = f"That is no evidence of a difference: p is above the {limit} that was fixed beforehand."
        if c.low is not None and c.high is not None and c.low < 0 < c.high:
            verdict += f" Differences from {points(c.low)} to {points(c.high)} points remain possible."
    return verdict


def _equals(p: float) -> str:
    return p_value(p) if p < 0.0001 else f"= {p_value(p)}"


def _people(n: int) -> str:
    return f"{n} participant{'' if n == 1 else 's'}"


def _figures(results: Results, name: str, pack: PackResults, not_asked: frozenset[str]) -> dict[str, str]:
    views = pack.views
    if views is None:
        return {}
    outcome = results.definition.primary.outcome
    heading = FIGURE_OUTCOMES[outcome]
    shown = {k: v for k, v in FIGURE_OUTCOMES.items() if k not in not_asked}
    labels = list(next(iter(views.by_source.values())))
    verdict_ms = None if "mistake_reasonable_direct" in not_asked else views.verdict_ms
    return {
        "rates": figures.rates_figure(pack.models, shown, f"Rates per model with 95 % intervals, {name}"),
        "components": charts.components_figure(views.components, f"What the labels were, per model, {name}"),
        "thirds": charts.thirds_figure(
            views.thirds, outcome, heading, f"{heading} by third of the session, {name}"
        ),
        "digits": charts.digits_figure(
            views.by_source, views.by_target, f"{heading} by original and by the network’s answer, {name}"
        ),
        "pairs": charts.pairs_figure(
            views.pairs, labels, f"{heading} by original and network’s answer together, {name}"
        ),
        "times": charts.times_figure(views.label_ms, verdict_ms, f"Response times per model, {name}"),
    }


def _notes(pack: PackResults) -> list[str]:
    """What the intervals of a pack cannot account for, each once."""
    models: dict[str, list[str]] = {}
    for model, rates in pack.models.items():
        for reason in dict.fromkeys(r.reason for name, r in rates.items() if r.n and r.reason):
            models.setdefault(reason, []).append(model.replace("_", " "))
    return [
        reason if len(named) == len(pack.models) else f"{', '.join(named)}: {reason}"
        for reason, named in models.items()
    ]
