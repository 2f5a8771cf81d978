"""What a study shows: counts from SQL, statistics from `stats`, one typed result for page, JSON and export."""

from collections.abc import Set
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations

from sqlalchemy import ColumnElement, Integer, case, cast, func, or_, select
from sqlalchemy.orm import Session

from app import definition as definitions
from app import stats
from app.definition import Definition
from app.models import (
    NONE_PLAUSIBLE,
    Comment,
    Judgment,
    Participant,
    Response,
    Stimulus,
    Study,
    Trial,
    Unmasking,
)
from app.progress import Data, Progress, default_data, monitor, taking_part
from ml.pack import study_order

__all__ = ["Data", "Results", "compute", "default_data"]

OUTCOMES = (
    "human_fooled",
    "mistake_reasonable",
    "mistake_reasonable_direct",
    "target_first",
    "target_second",
    "none_plausible",
    "kept_source",
    "placebo_reasonable",
)
COMPARED = ("human_fooled", "mistake_reasonable", "mistake_reasonable_direct")


@dataclass(frozen=True)
class Comparison:
    """Two models on the same pack. `difference` is a minus b, the mean over complete, included participants."""

    a: str
    b: str
    outcome: str
    primary: bool
    participants: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_mid: float | None
    p_holm: float | None  # null for the primary comparison, which stands outside the correction
    p_new_images: float | None
    p_naive: float | None
    p_exact: bool  # False: more participants than the exact test can count, so p and p_mid are upper bounds
    reason: str | None  # why there is no interval
    reason_new_images: str | None  # why there is no p_new_images


@dataclass(frozen=True)
class PackResults:
    models: dict[str, dict[str, stats.Rate]]  # model -> outcome -> rate
    comparisons: list[Comparison]


@dataclass(frozen=True)
class CommentView:
    pseudonym: str
    text: str
    grids: list[str]  # "A: mnist-jsma/distilled", in the order that this participant saw


@dataclass(frozen=True)
class Results:
    study: Study
    definition: Definition
    data: Data
    started: int
    finished: int
    excluded: int
    withdrawn: int
    responses: int
    included: int  # finished and not excluded
    masked: bool
    unmasking: Unmasking | None
    packs: dict[str, PackResults]
    progress: list[Progress]
    comments: list[CommentView]


def compute(session: Session, study: Study, data: Data) -> Results:
    """All that the dashboard, the JSON and the export say about one version of a study."""
    definition = definitions.of(study)
    people = monitor(session, study, definition, data)
    included = len(people.complete)
    unmasking = session.get(Unmasking, (study.id, data == "simulated"))
    masked = included < definition.target_participants and unmasking is None
    cells = _cells(session, study, data, people.excluded)
    packs: dict[str, PackResults] = {}
    for link in study.packs:
        models = list(study_order(link.pack.models))
        of_pack = cells.get(link.pack_id, {})
        packs[link.pack.name] = PackResults(
            models={
                model: {outcome: stats.rate(of_pack.get((model, outcome), [])) for outcome in OUTCOMES}
                for model in models
            },
            comparisons=[]
            if masked
            else _comparisons(definition, link.pack.name, models, of_pack, people.complete),
        )
    return Results(
        study=study,
        definition=definition,
        data=data,
        started=len(people.rows),
        finished=people.count("finished"),
        excluded=len(people.excluded),
        withdrawn=people.count("withdrawn"),
        responses=session.scalar(
            select(func.count())
            .select_from(Response)
            .join(Trial, Trial.id == Response.trial_id)
            .join(Participant, Participant.id == Trial.participant_id)
            .where(*taking_part(study, data), Trial.kind == "main")
        )
        or 0,
        included=included,
        masked=masked,
        unmasking=unmasking,
        packs=packs if masked else _with_holm(packs),
        progress=people.rows,
        comments=_comments(session, study, data),
    )


def outcome_columns() -> dict[str, ColumnElement[bool]]:
    """Each outcome of REFERENCE as an SQL condition on Response, Judgment, Stimulus and Trial."""
    none = Response.label == NONE_PLAUSIBLE
    first = Response.label == Stimulus.target_label
    second = func.coalesce(Response.runner_up, "") == Stimulus.target_label
    placebo_second = func.coalesce(Response.runner_up, "") == Trial.placebo_label
    return {
        "human_fooled": first,
        "mistake_reasonable": or_(first, second, none),
        "mistake_reasonable_direct": Judgment.plausible.is_(True),
        "target_first": first,
        "target_second": second,
        "none_plausible": none,
        "kept_source": Response.label == Stimulus.source_label,
        "placebo_reasonable": or_(Response.label == Trial.placebo_label, placebo_second, none),
    }


def _cells(
    session: Session, study: Study, data: Data, excluded: Set[int]
) -> dict[int, dict[tuple[str, str], list[stats.Cell]]]:
    """pack id -> (model, outcome) -> answered main trials of each participant on each source image."""
    columns = outcome_columns()
    sums = [func.sum(cast(case((condition, 1), else_=0), Integer)) for condition in columns.values()]
    rows = session.execute(
        select(
            Stimulus.pack_id,
            Stimulus.model,
            Participant.id,
            Stimulus.source_index,
            func.count(),
            func.count(Response.runner_up),
            func.count(Judgment.trial_id),
            *sums,
        )
        .select_from(Trial)
        .join(Participant, Participant.id == Trial.participant_id)
        .join(Response, Response.trial_id == Trial.id)
        .join(Stimulus, Stimulus.id == Trial.stimulus_id)
        .outerjoin(Judgment, Judgment.trial_id == Trial.id)
        .where(*taking_part(study, data), Trial.kind == "main")
        .group_by(Stimulus.pack_id, Stimulus.model, Participant.id, Stimulus.source_index)
    )
    found: dict[int, dict[tuple[str, str], list[stats.Cell]]] = {}
    for pack, model, participant, image, labelled, asked_twice, judged, *counts in rows:
        if participant in excluded:
            continue
        of_pack = found.setdefault(pack, {})
        # An outcome's n are those who were asked: a study without a question has no rate of it, not a rate of 0.
        asked = {"target_second": asked_twice, "mistake_reasonable_direct": judged}
        for outcome, count in zip(columns, counts, strict=True):
            if n := asked.get(outcome, labelled):
                of_pack.setdefault((model, outcome), []).append(stats.Cell(participant, image, count, n))
    return found


def _comparisons(
    definition: Definition,
    pack: str,
    models: list[str],
    cells: dict[tuple[str, str], list[stats.Cell]],
    complete: Set[int],
) -> list[Comparison]:
    primary = definition.primary
    outcomes = [outcome for outcome in COMPARED if definition.asks(outcome)]
    pairs = list(combinations(models, 2))
    if pack == primary.pack and (primary.b, primary.a) in pairs:  # the study file says which is a
        pairs[pairs.index((primary.b, primary.a))] = (primary.a, primary.b)
    return [
        _compare(
            a,
            b,
            outcome,
            (pack, a, b, outcome) == (primary.pack, primary.a, primary.b, primary.outcome),
            [c for c in cells.get((a, outcome), []) if c.participant in complete],
            [c for c in cells.get((b, outcome), []) if c.participant in complete],
        )
        for a, b in pairs
        for outcome in outcomes
    ]


def _compare(
    a: str, b: str, outcome: str, primary: bool, cells_a: list[stats.Cell], cells_b: list[stats.Cell]
) -> Comparison:
    rates_a, rates_b = _participant_rates(cells_a), _participant_rates(cells_b)
    both = sorted(rates_a.keys() & rates_b.keys())
    differences = [rates_a[participant] - rates_b[participant] for participant in both]
    difference, interval = stats.mean_difference(differences)
    flip = stats.sign_flip(differences)
    new_images = stats.new_images_test(cells_a, cells_b)
    return Comparison(
        a=a,
        b=b,
        outcome=outcome,
        primary=primary,
        participants=len(both),
        difference=difference,
        low=interval.low,
        high=interval.high,
        p=flip.p if flip else None,
        p_mid=flip.p_mid if flip else None,
        p_holm=None,
        p_new_images=new_images.p,
        p_naive=stats.fisher(
            sum(c.count for c in cells_a),
            sum(c.n for c in cells_a),
            sum(c.count for c in cells_b),
            sum(c.n for c in cells_b),
        ),
        p_exact=flip.exact if flip else True,
        reason=interval.reason,
        reason_new_images=new_images.reason,
    )


def _participant_rates(cells: list[stats.Cell]) -> dict[int, Fraction]:
    totals: dict[int, tuple[int, int]] = {}
    for cell in cells:
        count, n = totals.get(cell.participant, (0, 0))
        totals[cell.participant] = (count + cell.count, n + cell.n)
    return {participant: Fraction(count, n) for participant, (count, n) in totals.items()}


def _with_holm(packs: dict[str, PackResults]) -> dict[str, PackResults]:
    """Holm over every comparison of the study but the primary one."""
    family = [(pack, i) for pack, r in packs.items() for i, c in enumerate(r.comparisons) if not c.primary]
    adjusted = stats.holm([packs[pack].comparisons[i].p for pack, i in family])
    by_place = dict(zip(family, adjusted, strict=True))
    return {
        pack: PackResults(
            models=r.models,
            comparisons=[replace(c, p_holm=by_place.get((pack, i))) for i, c in enumerate(r.comparisons)],
        )
        for pack, r in packs.items()
    }


def _comments(session: Session, study: Study, data: Data) -> list[CommentView]:
    rows = session.execute(
        select(Participant.pseudonym, Participant.grid_order, Comment.text)
        .join(Comment, Comment.participant_id == Participant.id)
        .where(*taking_part(study, data), Comment.text != "")
        .order_by(Comment.written_at)
    )
    return [
        CommentView(pseudonym, text, [f"{chr(ord('A') + i)}: {name}" for i, name in enumerate(order)])
        for pseudonym, order, text in rows
    ]
