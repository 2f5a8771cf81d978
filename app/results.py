"""What a study shows: answers as columns, statistics from `stats`, one typed result for page, JSON and export."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from itertools import combinations, islice
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import definition as definitions
from app import observations, progress, stats, tally
from app.definition import Definition
from app.differences import mean_difference, sign_flip
from app.models import Comment, Participant, SeenLook, Study, Unmasking
from app.observations import Data, Memory, Seen, get
from app.outcomes import COMPARED
from app.progress import Monitor, Summary, monitor, taking_part
from app.stats import Rate
from app.tally import Frame, Running, Sums
from app.views import Views, views
from ml.pack import study_order


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
        kept = memory.about(study, data)
        frames = _frames(session, study, definition, memory)
        looks = [_as_seen(look, seen.get(look.n)) for look in _looks(definition, frames, people, kept)]
        masked = (
            len(people.complete) < target and unmasking is None and not any(look.crossed for look in looks)
        )
        packs = _packs(definition, frames, people, masked, kept)
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
        finished=people.states["finished"],
        excluded=len(people.excluded),
        withdrawn=people.states["withdrawn"],
        responses=people.responses,
        included=len(people.complete),
        labels=list(study.packs[0].pack.labels),
        masked=masked,
        unmasking=unmasking if early else None,
        seen_before=unmasking is not None,
        looks=looks,
        packs=packs,
        progress=people.rows,
        summary=progress.summary(people, now or datetime.now(UTC)),
    )


def _frames(session: Session, study: Study, definition: Definition, memory: Memory) -> dict[str, Frame]:
    """What each pack's answers are sorted by; `compared` are the outcomes that the study asks about."""
    stimuli = observations.stimuli_of(session, study, memory)
    return {
        link.pack.name: Frame(
            stimuli=stimuli,
            pack=place,
            models=list(study_order(link.pack.models)),  # the same in all packs of a study
            outcome=definition.primary.outcome,
            compared=[outcome for outcome in COMPARED if definition.asks(outcome)],
            trials=definition.trials,
        )
        for place, link in enumerate(study.packs)
    }


def _packs(
    definition: Definition, frames: dict[str, Frame], people: Monitor, masked: bool, kept: dict[Hashable, Any]
) -> dict[str, PackResults]:
    packs: dict[str, PackResults] = {}
    for name, frame in frames.items():
        counting = _brought(kept, ("included", name), people.included, partial(tally.summed_rates, frame))
        packs[name] = get(kept, ("rates", name), counting, partial(_rates, frame, counting.sums))
        if not masked:
            done = _brought(
                kept, ("complete", name), people.complete, partial(tally.summed_comparisons, frame)
            )
            packs[name] = replace(
                packs[name],
                comparisons=get(
                    kept,
                    ("comparisons", name),
                    done,
                    partial(_comparisons, definition, name, frame, done.sums),
                ),
                views=get(
                    kept,
                    ("views", name),
                    counting,
                    partial(views, frame, counting.sums, list(people.included.values())),
                ),
            )
    return packs if masked else _with_holm(packs)


def _brought(
    kept: dict[Hashable, Any],
    name: Hashable,
    members: Mapping[int, Seen],
    summed: Callable[[Sequence[Seen]], Sums],
) -> Running:
    found: Running = tally.brought(kept.get(name), members, summed)
    kept[name] = found
    return found


def _rates(frame: Frame, sums: Sums) -> PackResults:
    """What may be seen of a pack while the study is masked."""

    def of(name: str, group: int) -> dict[str, Rate]:
        by_outcome = tally.rates(sums, name)
        return {o: stats.rate(groups[group]) for o, groups in zip(tally.NUMBERS, by_outcome, strict=True)}

    models = {model: of("model", i) for i, model in enumerate(frame.models)}
    return PackResults(models=models, together=of("together", 0), comparisons=[], views=None)


def _looks(
    definition: Definition, frames: dict[str, Frame], people: Monitor, kept: dict[Hashable, Any]
) -> list[Look]:
    primary = definition.primary
    frame = frames[primary.pack]
    looks = []
    for n, boundary in zip(definition.look_sizes, definition.look_boundaries, strict=True):
        comparison = None
        if len(people.complete) >= n:
            first = dict(islice(people.complete.items(), n))
            done = _brought(kept, ("first", n), first, partial(tally.summed_comparisons, frame))
            comparison = get(
                kept,
                ("look", n),
                done,
                partial(_compare, frame, done.sums, primary.a, primary.b, primary.outcome, primary=True),
            )
        looks.append(Look(n, boundary, comparison))
    return looks


def _as_seen(look: Look, seen: SeenLook | None) -> Look:
    if seen is None:
        return look
    then = Comparison(**seen.comparison)
    return replace(
        look, found=then, seen_at=seen.at, still=look.found is not None and _same(look.found, then)
    )


def _same(now: Comparison, then: Comparison) -> bool:
    """Whether two are of the same answers: other libraries may give another last digit."""
    return all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-15)
        if isinstance(a, float) and isinstance(b, float)
        else a == b
        for a, b in zip(vars(now).values(), vars(then).values(), strict=True)
    )


def _comparisons(definition: Definition, pack: str, frame: Frame, sums: Sums) -> list[Comparison]:
    primary = definition.primary
    pairs = list(combinations(frame.models, 2))
    if pack == primary.pack and (primary.b, primary.a) in pairs:  # the study file says which is a
        pairs[pairs.index((primary.b, primary.a))] = (primary.a, primary.b)
    planned = (primary.pack, primary.a, primary.b, primary.outcome)
    return [
        _compare(frame, sums, a, b, outcome, primary=(pack, a, b, outcome) == planned)
        for a, b in pairs
        for outcome in frame.compared
    ]


def _compare(frame: Frame, sums: Sums, a: str, b: str, outcome: str, *, primary: bool) -> Comparison:
    """Two models, from the sums of `tally.summed_comparisons`."""
    k, of_a, of_b = frame.compared.index(outcome), frame.models.index(a), frame.models.index(b)
    clustered = tally.compared(sums, k, of_a, of_b)
    rates = _participants_rates(sums, k, of_a, of_b)
    people = sum(rates.values())
    differences: Counter[Fraction] = Counter()
    for (x, y), number in rates.items():
        differences[x - y] += number
    difference, interval = mean_difference(differences)
    flip = sign_flip(differences)
    new_images = stats.new_images_test(clustered)
    counts = clustered.totals
    return Comparison(
        a=a,
        b=b,
        outcome=outcome,
        primary=primary,
        participants=people,
        rate_a=float(sum(x * number for (x, _), number in rates.items()) / people) if people else None,
        rate_b=float(sum(y * number for (_, y), number in rates.items()) / people) if people else None,
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


def _participants_rates(sums: Sums, k: int, a: int, b: int) -> dict[tuple[Fraction, Fraction], int]:
    """(rate in `a`, rate in `b`) -> participants who have answers in both, and these rates."""
    found: Counter[tuple[Fraction, Fraction]] = Counter()
    for (count, n, other, m), people in sums.kinds[k, min(a, b), max(a, b)].items():
        pair = Fraction(count, n), Fraction(other, m)
        found[pair if a < b else pair[::-1]] += people
    return found


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


def comments(session: Session, found: Results, most: int | None = None) -> tuple[list[CommentView], int]:
    """What was written, the latest first and not more than `most`, of `session`'s instant; and how many wrote."""
    wrote = (*taking_part(found.study, found.data), Comment.text != "")
    rows = session.execute(
        select(Participant.pseudonym, Participant.grid_order, Comment.text)
        .join(Comment, Comment.participant_id == Participant.id)
        .where(*wrote)
        .order_by(Comment.written_at.desc(), Participant.number.desc())
        .limit(most)
    )
    shown = [
        CommentView(
            pseudonym,
            text,
            [] if found.masked else [f"{chr(ord('A') + i)}: {name}" for i, name in enumerate(order)],
        )
        for pseudonym, order, text in rows
    ]
    number = (
        select(func.count()).select_from(Comment).join(Participant, Comment.participant_id == Participant.id)
    )
    return shown, session.scalar(number.where(*wrote)) or 0
