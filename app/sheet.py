"""What the dashboard and the report show of a study's results, made ready for their templates."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app import charts, figures, published
from app.definition import ALPHA
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
GALLERY = 6  # images at either end


@dataclass(frozen=True)
class PackSheet:
    """One pack's part of the page; without `results.views` (masked) there are no figures and no images."""

    name: str
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


def sheet(session: Session, results: Results) -> Sheet:
    """Everything that is shown; figures are drawn here."""
    not_asked = frozenset(name for name in OUTCOMES if not results.definition.asks(name))
    kinds = {
        pack.name: published.kind_of(pack.manifest)
        for pack in session.scalars(
            select(Pack)
            .join(StudyPack, StudyPack.pack_id == Pack.id)
            .where(StudyPack.study_id == results.study.id)
        )
    }
    return Sheet(
        results=results,
        packs=[_pack_sheet(results, name, kinds[name], not_asked) for name in results.packs],
        not_asked=not_asked,
    )


def _pack_sheet(results: Results, name: str, kind: tuple[str, str], not_asked: frozenset[str]) -> PackSheet:
    pack = results.packs[name]
    images = [image for image in pack.views.images if image.counted] if pack.views else []
    by_low = sorted(images, key=lambda i: (-i.low, -i.reasonable, i.sha256))
    by_high = sorted(images, key=lambda i: (i.high, i.reasonable, i.sha256))
    return PackSheet(
        name=name,
        results=pack,
        finding=next((finding(results, c) for c in pack.comparisons if c.primary), None),
        notes=_notes(pack) if pack.views else [],
        figures=_figures(results, name, pack, not_asked),
        convincing=by_low[:GALLERY],
        unconvincing=by_high[:GALLERY],
        published=published.TABLES.get(kind),
        published_p=published.UNREASONABLE_P.get(kind),
    )


def finding(results: Results, c: Comparison) -> str:
    """The primary comparison in a sentence of plain English, with its scope and what weakens it."""
    if c.difference is None or c.p is None:
        return (
            "No complete, included participant has answered about both models of the primary comparison yet."
        )
    whose, did, others = FINDINGS[c.outcome]
    a, b = c.a.replace("_", " "), c.b.replace("_", " ")
    people = f"{c.participants} participant{'' if c.participants == 1 else 's'}"
    target = results.definition.target_participants
    if c.difference == 0:
        how_often = "exactly as often as"
    else:
        size = percent(abs(c.difference))
        points_ = "less than 0.1" if size == "0.0" else size
        how_often = f"{points_} percentage points {'less' if c.difference < 0 else 'more'} often than"
    interval = (
        f"95 % interval of the difference {points(c.low)} to {points(c.high)}; "
        if c.low is not None and c.high is not None
        else ""
    )
    p = p_value(c.p) if c.p < 0.0001 else f"= {p_value(c.p)}"
    said = [
        f"Averaged over {people}, {whose} {a} {did} {how_often} {others} {b} ({interval}"
        f"{'exact' if c.p_exact else 'conservative'} two-sided sign-flip test, p {p}).",
        "This speaks about new participants and these images.",
    ]
    if c.low is None:
        reason = c.reason or ""
        said.append(f"There is no interval: {reason[:1].lower()}{reason[1:]}")
    least = 0.5 ** (c.participants - 1)
    if least > ALPHA:
        said.append(f"With {people} this test cannot give a p below {p_value(least)}.")
    if c.low is not None and c.high is not None and (c.low > 0 or c.high < 0) != (c.p <= ALPHA):
        said.append(
            "The interval and the test disagree about a difference of zero here; "
            "the test assumes less and is the one to report."
        )
    if results.looks:
        said.append(
            f"The study declared {len(results.looks)} looks: what decides is the table of planned looks, where the "
            f"last p is held against {p_value(results.looks[-1].boundary)}."
        )
    if results.unmasking:
        said.append(f"Unmasked early, at {results.unmasking.n} of {target} participants.")
    return " ".join(said)


def _figures(results: Results, name: str, pack: PackResults, not_asked: frozenset[str]) -> dict[str, str]:
    views = pack.views
    if views is None:
        return {}
    outcome = results.definition.primary.outcome
    heading = FIGURE_OUTCOMES[outcome]
    shown = {k: v for k, v in FIGURE_OUTCOMES.items() if k not in not_asked}
    labels = list(next(iter(views.by_source.values())))
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
        "times": charts.times_figure(views.label_ms, views.verdict_ms, f"Response times per model, {name}"),
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
