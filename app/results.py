"""What a study shows: answers as columns, statistics from `stats`, one typed result for page, JSON and export."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from itertools import combinations

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import definition as definitions
from app import observations, progress, stats
from app.definition import Definition
from app.models import Comment, Participant, SeenLook, Study, Unmasking
from app.observations import Data, Memory, ScoredAnswers
from app.outcomes import COMPARED, OUTCOMES, PLACEBOS
from app.progress import Monitor, Summary, monitor, taking_part
from app.stats import Rate, Sample
from app.views import Views, views
from ml.pack import study_order

NUMBERS = (*OUTCOMES, *PLACEBOS)
"""Every rate of a model, in the order of the JSON."""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same pack. `difference` is a minus b, the mean over complete, included participants."""

    a: str
    b: str
    outcome: str
    primary: bool
    participants: int
    rate_a: float | None  # the mean of the participants' rates
    rate_b: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    p_mid: float | None
    p_holm: float | None  # null for the primary comparison, which stands outside the correction
    p_new_images: float | None
    p_naive: float | None  # Fisher's
    p_naive_z: float | None
    p_exact: bool  # False: more participants than the exact test can count, so p and p_mid are upper bounds
    reason: str | None  # why there is no interval
    reason_new_images: str | None  # why there is no p_new_images


@dataclass(frozen=True)
class Look:
    """A look at the primary comparison that is fixed beforehand: over the first `n` complete and included.

    The study file may declare some; the last, and without them the only one, is at the target N.

    `found` is None until so many are there, and from when it was first seen what it was then; its p is to be held
    against `boundary` alone.
    """

    n: int
    boundary: float
    found: Comparison | None
    seen_at: datetime | None = None
    still: bool = True  # False: somebody has withdrawn since it was seen, and it cannot be worked out again

    @property
    def crossed(self) -> bool:
        return self.found is not None and self.found.p is not None and self.found.p <= self.boundary


@dataclass(frozen=True)
class PackResults:
    """One pack's numbers. `comparisons` is empty and `views` is None as long as the study is masked."""

    models: dict[str, dict[str, Rate]]  # model -> NUMBERS -> rate
    together: dict[str, Rate]  # all models: what may be seen before the end
    comparisons: list[Comparison]
    views: Views | None


@dataclass(frozen=True)
class CommentView:
    pseudonym: str
    text: str
    grids: list[str]  # "A: mnist-jsma/distilled", in the order that this participant saw; empty while masked


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
    labels: list[str]  # that could be chosen
    masked: bool
    unmasking: Unmasking | None  # before the target N, and not because a look had decided
    seen_before: bool  # the comparisons have been shown, at the target N or before
    looks: list[Look]  # in order; the last is at the target N
    packs: dict[str, PackResults]
    progress: list[progress.Progress]
    summary: Summary
    comments: list[CommentView]  # the latest first


def compute(
    session: Session, study: Study, data: Data, memory: Memory | None = None, now: datetime | None = None
) -> Results:
    """All that the dashboard, the JSON, the report and the export say about one version of a study at `now`.

    With a `memory` only what has changed since the last time is read and worked out anew.
    """
    memory = memory or Memory()
    definition = definitions.of(study)
    target = definition.target_participants
    seen = {
        row.n: row
        for row in session.scalars(
            select(SeenLook).where(SeenLook.study_id == study.id, SeenLook.simulated == (data == "simulated"))
        )
    }
    unmasking = session.get(Unmasking, (study.id, data == "simulated"))
    with memory.lock:
        people = monitor(session, study, definition, data, memory)
        complete = people.complete
        found = memory.get(
            ("scored", study.id, data), people.version, lambda: _scored(session, study, people, memory)
        )
        made = memory.get(
            ("looks", study.id, data), people.version, lambda: _looks(study, definition, found, complete)
        )
        looks = [_as_seen(look, seen.get(look.n)) for look in made]
        masked = len(complete) < target and unmasking is None and not any(look.crossed for look in looks)
        version = (people.version, masked)
        packs = memory.get(
            ("packs", study.id, data),
            version,
            lambda: _packs(session, study, definition, people, found, masked, memory),
        )
        comments = memory.get(
            ("comments", study.id, data), version, lambda: _comments(session, study, data, masked)
        )
    early = (
        unmasking is not None
        and unmasking.n < target
        and not any(look.crossed and look.n <= unmasking.n for look in looks)
    )
    return Results(
        study=study,
        definition=definition,
        data=data,
        started=len(people.rows),
        finished=people.count("finished"),
        excluded=len(people.excluded),
        withdrawn=people.count("withdrawn"),
        responses=len(people.answers),
        included=len(complete),
        labels=list(study.packs[0].pack.labels),
        masked=masked,
        unmasking=unmasking if early else None,
        seen_before=unmasking is not None,
        looks=looks,
        packs=packs,
        progress=people.rows,
        summary=progress.summary(people, now or datetime.now(UTC)),
        comments=comments,
    )


def _models(study: Study) -> list[str]:
    return list(study_order(study.packs[0].pack.models))  # the same in all packs of a study


def _scored(session: Session, study: Study, people: Monitor, memory: Memory) -> ScoredAnswers:
    stimuli = observations.stimuli_of(session, study, memory)
    return observations.scored(people.answers, stimuli, _models(study))


def _packs(
    session: Session,
    study: Study,
    definition: Definition,
    people: Monitor,
    found: ScoredAnswers,
    masked: bool,
    memory: Memory,
) -> dict[str, PackResults]:
    stimuli = observations.stimuli_of(session, study, memory)
    models = _models(study)
    included = ~np.isin(people.answers.participant, sorted(people.excluded))
    done = np.isin(people.answers.participant, people.complete)
    packs: dict[str, PackResults] = {}
    for place, link in enumerate(study.packs):
        here = found.pack == place
        counting = found.where(here & included)
        packs[link.pack.name] = PackResults(
            models={model: _all_rates(counting.where(counting.model == i)) for i, model in enumerate(models)},
            together=_all_rates(counting),
            comparisons=[]
            if masked
            else _comparisons(definition, link.pack.name, models, found.where(here & done)),
            views=None
            if masked
            else views(counting, stimuli, models, definition.primary.outcome, definition.trials),
        )
    return packs if masked else _with_holm(packs)


def _all_rates(found: ScoredAnswers) -> dict[str, Rate]:
    return {name: stats.rate(found.sample(name)) for name in NUMBERS}


def _looks(study: Study, definition: Definition, found: ScoredAnswers, complete: list[int]) -> list[Look]:
    primary = definition.primary
    place = [link.pack.name for link in study.packs].index(primary.pack)
    looks = []
    for n, boundary in zip(definition.look_sizes, definition.look_boundaries, strict=True):
        comparison = None
        if len(complete) >= n:
            first = found.where(np.isin(found.answers.participant, complete[:n]) & (found.pack == place))
            comparison = _compare(_models(study), first, primary.a, primary.b, primary.outcome, primary=True)
        looks.append(Look(n, boundary, comparison))
    return looks


def _as_seen(look: Look, seen: SeenLook | None) -> Look:
    if seen is None:
        return look
    then = Comparison(**seen.comparison)
    return replace(look, found=then, seen_at=seen.at, still=look.found == then)


def _comparisons(
    definition: Definition, pack: str, models: list[str], found: ScoredAnswers
) -> list[Comparison]:
    primary = definition.primary
    asked = [outcome for outcome in COMPARED if definition.asks(outcome)]
    pairs = list(combinations(models, 2))
    if pack == primary.pack and (primary.b, primary.a) in pairs:  # the study file says which is a
        pairs[pairs.index((primary.b, primary.a))] = (primary.a, primary.b)
    planned = (primary.pack, primary.a, primary.b, primary.outcome)
    return [
        _compare(models, found, a, b, outcome, primary=(pack, a, b, outcome) == planned)
        for a, b in pairs
        for outcome in asked
    ]


def _compare(
    models: list[str], found: ScoredAnswers, a: str, b: str, outcome: str, *, primary: bool
) -> Comparison:
    of_a, of_b = (found.sample(outcome, found.model == models.index(model)) for model in (a, b))
    rates = _participants_rates(of_a, of_b)
    differences = [x - y for x, y in rates]
    difference, interval = stats.mean_difference(differences)
    flip = stats.sign_flip(differences)
    new_images = stats.new_images_test(of_a, of_b)
    counts = int(of_a.count.sum()), int(of_a.n.sum()), int(of_b.count.sum()), int(of_b.n.sum())
    return Comparison(
        a=a,
        b=b,
        outcome=outcome,
        primary=primary,
        participants=len(differences),
        rate_a=float(sum(x for x, _ in rates) / len(rates)) if rates else None,
        rate_b=float(sum(y for _, y in rates) / len(rates)) if rates else None,
        difference=difference,
        low=interval.low,
        high=interval.high,
        p=flip.p if flip else None,
        p_mid=flip.p_mid if flip else None,
        p_holm=None,
        p_new_images=new_images.p,
        p_naive=stats.fisher(*counts),
        p_naive_z=stats.pooled_z(*counts),
        p_exact=flip.exact if flip else True,
        reason=interval.reason,
        reason_new_images=new_images.reason,
    )


def _participants_rates(a: Sample, b: Sample) -> list[tuple[Fraction, Fraction]]:
    """The rate in `a` and the rate in `b` of every participant who has answers in both."""
    size = int(max(a.participant.max(initial=0), b.participant.max(initial=0))) + 1
    count_a, n_a, count_b, n_b = (
        np.bincount(sample.participant, weights=column, minlength=size).astype(np.int64)
        for sample in (a, b)
        for column in (sample.count, sample.n)
    )
    both = (n_a > 0) & (n_b > 0)
    table = np.stack([column[both] for column in (count_a, n_a, count_b, n_b)], axis=1)
    kinds, kind = np.unique(table, axis=0, return_inverse=True)  # many participants, few different pairs
    pairs = [(Fraction(x, n), Fraction(y, m)) for x, n, y, m in kinds.tolist()]
    return [pairs[i] for i in kind.ravel().tolist()]


def _with_holm(packs: dict[str, PackResults]) -> dict[str, PackResults]:
    """Holm over every comparison of the study but the primary one."""
    family = [(pack, i) for pack, r in packs.items() for i, c in enumerate(r.comparisons) if not c.primary]
    adjusted = stats.holm([packs[pack].comparisons[i].p for pack, i in family])
    by_place = dict(zip(family, adjusted, strict=True))
    return {
        pack: replace(
            r, comparisons=[replace(c, p_holm=by_place.get((pack, i))) for i, c in enumerate(r.comparisons)]
        )
        for pack, r in packs.items()
    }


def _comments(session: Session, study: Study, data: Data, masked: bool) -> list[CommentView]:
    rows = session.execute(
        select(Participant.pseudonym, Participant.grid_order, Comment.text)
        .join(Comment, Comment.participant_id == Participant.id)
        .where(*taking_part(study, data), Comment.text != "")
        .order_by(Comment.written_at.desc(), Participant.number.desc())
    )
    return [
        CommentView(
            pseudonym,
            text,
            [] if masked else [f"{chr(ord('A') + i)}: {name}" for i, name in enumerate(order)],
        )
        for pseudonym, order, text in rows
    ]
