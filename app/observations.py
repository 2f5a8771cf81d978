"""Participants' answers as columns, read once: what has been read of somebody is kept until their row changes.

Every answer, comment, end and withdrawal changes the participant's row in the same transaction, so the rows
say whose answers have to be read again; a page over 300,000 answers then reads some dozens.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

import numpy as np
from sqlalchemy import ColumnElement, Select, Text, and_, case, func, or_, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import Session

from app import outcomes
from app.models import (
    NONE_PLAUSIBLE,
    CleanImage,
    Judgment,
    Participant,
    Response,
    Stimulus,
    Study,
    Trial,
)
from app.outcomes import NONE, NOT_ASKED, Mask, Scored
from app.stats import Floats, Ints, Sample

Data = Literal["real", "simulated"]
Key = tuple[datetime, datetime | None]  # last seen, finished: changes with everything that a participant does

# What the participant's page notes about an image (static/presentation.js) and is not as it should be.
DISTURBANCES = ("image_retries", "hidden_times", "too_early", "held_keys")
NAN = float("nan")
CHUNK = 500  # participants read by name in one statement; more are read all at once


@dataclass(frozen=True)
class Answers:
    """Answered main trials as columns of shape (answers,), by participant's number and position."""

    participant: Ints  # Participant.number
    stimulus: Ints  # row in Stimuli
    rank: Ints  # 0, 1, ...: how many main trials came before it
    first: Ints  # coded as in outcomes
    second: Ints
    placebo: Ints
    verdict: Ints  # 1, 0 or NOT_ASKED
    label_ms: Floats  # NaN where it could not be measured
    verdict_ms: Floats

    def __len__(self) -> int:
        return self.participant.size

    def where(self, mask: Mask) -> Answers:
        return Answers(*(column[mask] for column in vars(self).values()))


@dataclass(frozen=True)
class Stimuli:
    """The stimuli of a study's packs as columns of shape (stimuli,); labels are indices in `labels`."""

    labels: tuple[str, ...]
    row: dict[int, int]  # Stimulus.id -> row
    sha256: tuple[str, ...]
    prediction: tuple[str, ...]
    probability: Floats  # the network's, of the target, in [0, 1]
    pack: Ints  # place in the study's packs
    model: tuple[str, ...]
    source_index: Ints
    source: Ints
    target: Ints


@dataclass(frozen=True)
class Seen:
    """One participant as read: counts over all trials, practice too, and the columns of Answers but the first."""

    key: Key
    to_label: int
    labelled: int
    to_judge: int
    judged: int
    controls_right: int
    disturbances: dict[str, int]  # how many answers had each of DISTURBANCES
    ints: Ints  # shape (answers, 6)
    floats: Floats  # shape (answers, 2)


@dataclass
class Memory:
    """What one server process has read and worked out; without one everything is read for each request."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    seen: dict[tuple[int, Data], dict[int, Seen]] = field(default_factory=dict)
    stimuli: dict[int, Stimuli] = field(default_factory=dict)
    kept: dict[Hashable, tuple[Hashable, Any]] = field(default_factory=dict)  # name -> (version, value)

    def get(self, name: Hashable, version: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gave for this version of the data; one version of each name is kept."""
        found = self.kept.get(name)
        if found is None or found[0] != version:
            found = self.kept[name] = (version, make())
        return found[1]


def belonging(study: Study, data: Data) -> tuple[ColumnElement[bool], ...]:
    """The conditions on Participant of all who are of this version and kind, withdrawn or not."""
    return Participant.study_id == study.id, Participant.simulated == (data == "simulated")


def stimuli_of(session: Session, study: Study, memory: Memory) -> Stimuli:
    """The stimuli that a study version shows; a pack never changes."""
    if study.id not in memory.stimuli:
        memory.stimuli[study.id] = _read_stimuli(session, study)
    return memory.stimuli[study.id]


def seen(session: Session, study: Study, data: Data, keys: dict[int, Key], memory: Memory) -> dict[int, Seen]:
    """Participant.id -> what was read of them, of those in `keys`; call it holding `memory.lock`."""
    known = memory.seen.get((study.id, data), {})
    now = {id_: known[id_] for id_, key in keys.items() if id_ in known and known[id_].key == key}
    changed = {id_: key for id_, key in keys.items() if id_ not in now}
    if changed:
        now |= _read(session, study, data, changed, stimuli_of(session, study, memory))
    memory.seen[study.id, data] = now
    return now


def columns(people: Iterable[tuple[int, Seen]]) -> Answers:
    """The answers of (Participant.number, what was read) in that order."""
    people = list(people)
    ints = np.concatenate([np.empty((0, 6), np.int64), *(s.ints for _, s in people)])
    floats = np.concatenate([np.empty((0, 2)), *(s.floats for _, s in people)])
    numbers = np.array([number for number, _ in people], np.int64)
    lengths = np.array([len(s.ints) for _, s in people], np.int64)
    return Answers(np.repeat(numbers, lengths), *ints.T.copy(), *floats.T.copy())


def _read_stimuli(session: Session, study: Study) -> Stimuli:
    packs = [link.pack for link in study.packs]
    place = {pack.id: i for i, pack in enumerate(packs)}
    labels = tuple(packs[0].labels)
    code = {label: i for i, label in enumerate(labels)}
    rows = session.execute(
        select(
            Stimulus.id,
            Stimulus.pack_id,
            Stimulus.sha256,
            Stimulus.model,
            Stimulus.source_index,
            Stimulus.source_label,
            Stimulus.target_label,
            Stimulus.prediction,
            Stimulus.target_probability,
        )
        .where(Stimulus.pack_id.in_(list(place)))
        .order_by(Stimulus.id)
    ).all()
    return Stimuli(
        labels=labels,
        row={row.id: i for i, row in enumerate(rows)},
        sha256=tuple(row.sha256 for row in rows),
        prediction=tuple(row.prediction for row in rows),
        probability=np.array([row.target_probability for row in rows], np.float64),
        pack=np.array([place[row.pack_id] for row in rows], np.int64),
        model=tuple(row.model for row in rows),
        source_index=np.array([row.source_index for row in rows], np.int64),
        source=np.array([code[row.source_label] for row in rows], np.int64),
        target=np.array([code[row.target_label] for row in rows], np.int64),
    )


def _read(
    session: Session, study: Study, data: Data, changed: dict[int, Key], stimuli: Stimuli
) -> dict[int, Seen]:
    whose = list(belonging(study, data))
    if len(changed) <= CHUNK:  # else, as the first time, reading everybody is quicker than naming them
        whose.append(Participant.id.in_(sorted(changed)))
    code: dict[str | None, int] = {label: i for i, label in enumerate(stimuli.labels)}
    code |= {NONE_PLAUSIBLE: NONE, None: NOT_ASKED}
    ints: dict[int, list[tuple[int, ...]]] = {}
    floats: dict[int, list[tuple[float, float]]] = {}
    rows = session.execute(
        select(
            Trial.participant_id,
            Trial.stimulus_id,
            Response.label,
            Response.runner_up,
            Trial.placebo_label,
            Judgment.plausible,
            Response.rt_ms,
            Judgment.rt_ms,
        )
        .select_from(Participant)
        .join(Trial, Trial.participant_id == Participant.id)
        .join(Response, Response.trial_id == Trial.id)
        .outerjoin(Judgment, Judgment.trial_id == Trial.id)
        .where(*whose, Trial.kind == "main", Trial.stimulus_id.is_not(None))
        .order_by(Trial.participant_id, Trial.position)
    )
    for who, stimulus, label, runner_up, placebo, plausible, label_ms, verdict_ms in rows:
        own = ints.setdefault(who, [])
        verdict = NOT_ASKED if plausible is None else int(plausible)
        # Images are labelled in the order of the trials, so a trial's rank among the answered is its rank of all.
        own.append(
            (
                stimuli.row[cast("int", stimulus)],
                len(own),
                code[label],
                code[runner_up],
                code[placebo],
                verdict,
            )
        )
        times = (NAN if label_ms is None else label_ms, NAN if verdict_ms is None else verdict_ms)
        floats.setdefault(who, []).append(times)
    counts = {row[0]: row[1:] for row in session.execute(_counts(whose))}
    disturbed = _disturbed(session, whose)
    found: dict[int, Seen] = {}
    for id_, key in changed.items():
        to_label, labelled, to_judge, judged, right = counts.get(id_, (0, 0, 0, 0, 0))
        found[id_] = Seen(
            key=key,
            to_label=to_label,
            labelled=labelled,
            to_judge=to_judge,
            judged=judged,
            controls_right=right or 0,
            disturbances=disturbed.get(id_, dict.fromkeys(DISTURBANCES, 0)),
            ints=np.array(ints.get(id_, []), np.int64).reshape(-1, 6),
            floats=np.array(floats.get(id_, []), np.float64).reshape(-1, 2),
        )
    return found


def _counts(whose: Sequence[ColumnElement[bool]]) -> Select[*tuple[Any, ...]]:
    right = and_(Trial.kind == "control", Response.label == CleanImage.source_label)
    return (
        select(
            Trial.participant_id,
            func.count(),
            func.count(Response.trial_id),
            func.count(Trial.judging_order),
            func.count(Judgment.trial_id),
            func.sum(case((right, 1), else_=0)),
        )
        .select_from(Participant)
        .join(Trial, Trial.participant_id == Participant.id)
        .outerjoin(Response, Response.trial_id == Trial.id)
        .outerjoin(Judgment, Judgment.trial_id == Trial.id)
        .outerjoin(CleanImage, CleanImage.id == Trial.clean_image_id)
        .where(*whose)
        .group_by(Trial.participant_id)
    )


def _disturbed(session: Session, whose: Sequence[ColumnElement[bool]]) -> dict[int, dict[str, int]]:
    """Participant.id -> in how many answers each of DISTURBANCES was noted; who had none is left out."""
    found: dict[int, dict[str, int]] = {}
    for table in (Response, Judgment):
        text = sql_cast(table.display, Text)
        # Most answers have nothing to tell; the text says so without being read, where it has the name just once:
        # twice, and the 0 may be that of another key that looks alike, of an inner object's for one.
        noted = or_(
            *(
                and_(
                    text.contains(f'"{n}"'),
                    or_(
                        ~or_(*(text.contains(f'"{n}": 0{end}') for end in (",", "}"))),
                        text.like(f'%"{n}"%"{n}"%'),
                    ),
                )
                for n in DISTURBANCES
            )
        )
        for who, written in session.execute(
            select(Trial.participant_id, text)
            .select_from(Participant)
            .join(Trial, Trial.participant_id == Participant.id)
            .join(table, table.trial_id == Trial.id)
            .where(*whose, noted)
        ):
            display = json.loads(written)
            for name in DISTURBANCES:
                value = display.get(name)
                if isinstance(value, int | float) and value > 0:  # what a client sends may be anything
                    own = found.setdefault(who, dict.fromkeys(DISTURBANCES, 0))
                    own[name] += 1
    return found


@dataclass(frozen=True)
class ScoredAnswers:
    """Answers with what hides behind each image and every outcome; all of shape (answers,)."""

    answers: Answers
    pack: Ints  # place in the study's packs
    model: Ints  # place in the list of models that `scored` was given
    source_index: Ints
    source: Ints
    target: Ints
    outcomes: dict[str, Scored]

    def where(self, mask: Mask) -> ScoredAnswers:
        return ScoredAnswers(
            answers=self.answers.where(mask),
            pack=self.pack[mask],
            model=self.model[mask],
            source_index=self.source_index[mask],
            source=self.source[mask],
            target=self.target[mask],
            outcomes={name: Scored(o.hit[mask], o.counted[mask]) for name, o in self.outcomes.items()},
        )

    def sample(self, outcome: str, mask: Mask | None = None) -> Sample:
        """The answers, of `mask` or all, that count for the outcome; clusters are participant and source image."""
        hit, counted = self.outcomes[outcome].hit, self.outcomes[outcome].counted
        chosen = counted if mask is None else counted & mask
        return Sample.of_answers(self.answers.participant[chosen], self.source_index[chosen], hit[chosen])


def scored(answers: Answers, stimuli: Stimuli, models: Sequence[str]) -> ScoredAnswers:
    """Look behind the images: the one place where answers meet source, target and model."""
    place = {model: i for i, model in enumerate(models)}
    model_of = np.array([place[model] for model in stimuli.model], np.int64)
    source, target = stimuli.source[answers.stimulus], stimuli.target[answers.stimulus]
    return ScoredAnswers(
        answers=answers,
        pack=stimuli.pack[answers.stimulus],
        model=model_of[answers.stimulus],
        source_index=stimuli.source_index[answers.stimulus],
        source=source,
        target=target,
        outcomes=outcomes.score(
            answers.first, answers.second, answers.verdict, source, target, answers.placebo
        ),
    )
