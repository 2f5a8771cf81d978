"""Participants' answers as columns, read once: what has been read of somebody is kept until their row changes.

Every answer, end and withdrawal changes the participant's row in the same transaction, so the rows say whose
answers have to be read again; a page over 300,000 answers then reads some dozens.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, Row, Text, and_, case, or_, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import Session

from app import outcomes
from app.clusters import Floats, Ints
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

Data = Literal["real", "simulated"]

# What the participant's page notes about an image (static/presentation.js) and is not as it should be.
DISTURBANCES = ("image_retries", "hidden_times", "too_early", "held_keys")
UNDISTURBED: Mapping[str, int] = dict.fromkeys(DISTURBANCES, 0)
CHUNK = 500  # participants whose answers are read by one statement
VERDICTS = {None: NOT_ASKED, False: 0, True: 1}
KEPT = 4  # study versions and kinds of participants whose answers a process keeps, the last ones asked about


@dataclass(frozen=True)
class Answers:
    """Answered main trials as columns of shape (answers,), by participant and position."""

    participant: Ints  # place in the list that `columns` was given
    stimulus: Ints  # row in Stimuli
    rank: Ints  # 0, 1, ...: how many main trials came before it
    first: Ints  # coded as in outcomes
    second: Ints
    placebo: Ints
    verdict: Ints  # 1, 0 or NOT_ASKED
    label_ms: Floats  # NaN where it could not be measured
    verdict_ms: Floats


@dataclass(frozen=True)
class Stimuli:
    """The stimuli of a study's packs as columns of shape (stimuli,); labels are indices in `labels`."""

    labels: tuple[str, ...]
    row: dict[int, int]  # Stimulus.id -> row
    clean: dict[int, str]  # CleanImage.id -> label
    sha256: tuple[str, ...]
    prediction: tuple[str, ...]
    probability: Floats  # the network's, of the target, in [0, 1]
    pack: Ints  # place in the study's packs
    model: tuple[str, ...]
    source_index: Ints
    image: Ints  # 0, 1, ... for each source_index
    source: Ints
    target: Ints


@dataclass(frozen=True, eq=False)
class Seen:
    """One participant as read: counts over all trials, practice too, and the columns of Answers but the first.

    Who is read again becomes another object; some 2 kB for 30 answers.
    """

    to_label: int
    labelled: int
    to_judge: int
    judged: int
    controls_right: int
    disturbances: Mapping[str, int]  # how many answers had each of DISTURBANCES
    ints: npt.NDArray[np.int32]  # shape (answers, 6)
    floats: Floats  # shape (answers, 2)


@dataclass
class Memory:
    """What one server process has read and worked out; without one everything is read for each request.

    What is kept under a name goes when its study has not been asked about for longest, of more than KEPT.
    """

    lock: threading.RLock = field(default_factory=threading.RLock)
    kept: dict[tuple[int, Data], dict[Hashable, Any]] = field(default_factory=dict)
    stimuli: dict[int, Stimuli] = field(default_factory=dict)

    def about(self, study: Study, data: Data) -> dict[Hashable, Any]:
        """What is kept about these participants; call it holding `lock`."""
        found = self.kept.pop((study.id, data), {})
        self.kept[study.id, data] = found  # the last one asked about is the last
        while len(self.kept) > KEPT:
            del self.kept[next(iter(self.kept))]
        return found

    def forget(self, study: Study, data: Data) -> None:
        """Read and work out everything about these participants anew, next time."""
        self.kept.pop((study.id, data), None)


def get(kept: dict[Hashable, Any], name: Hashable, version: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` gave for this version of the data; one version of each name is kept."""
    found = kept.get(name)
    if found is None or found[0] != version:
        found = kept[name] = (version, make())
    return found[1]


def belonging(study: Study, data: Data) -> tuple[ColumnElement[bool], ...]:
    """The conditions on Participant of all who are of this version and kind, withdrawn or not."""
    return Participant.study_id == study.id, Participant.simulated == (data == "simulated")


def stimuli_of(session: Session, study: Study, memory: Memory) -> Stimuli:
    """The stimuli that a study version shows; a pack never changes."""
    if study.id not in memory.stimuli:
        memory.stimuli[study.id] = _read_stimuli(session, study)
    return memory.stimuli[study.id]


def columns(people: Sequence[Seen]) -> Answers:
    """The answers of these participants, in that order."""
    ints = np.concatenate([np.empty((0, 6), np.int32), *(own.ints for own in people)])
    floats = np.concatenate([np.empty((0, 2)), *(own.floats for own in people)])
    lengths = np.array([len(own.ints) for own in people], np.int64)
    return Answers(
        np.repeat(np.arange(len(people)), lengths), *ints.T.astype(np.int64), *np.ascontiguousarray(floats.T)
    )


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
    clean = session.execute(
        select(CleanImage.id, CleanImage.source_label).where(CleanImage.pack_id.in_(list(place)))
    )
    source_index = np.array([row.source_index for row in rows], np.int64)
    return Stimuli(
        labels=labels,
        row={row.id: i for i, row in enumerate(rows)},
        clean={row.id: row.source_label for row in clean},
        sha256=tuple(row.sha256 for row in rows),
        prediction=tuple(row.prediction for row in rows),
        probability=np.array([row.target_probability for row in rows], np.float64),
        pack=np.array([place[row.pack_id] for row in rows], np.int64),
        model=tuple(row.model for row in rows),
        source_index=source_index,
        image=np.unique(source_index, return_inverse=True)[1].astype(np.int64),
        source=np.array([code[row.source_label] for row in rows], np.int64),
        target=np.array([code[row.target_label] for row in rows], np.int64),
    )


def read(session: Session, ids: Sequence[int], stimuli: Stimuli) -> Iterator[tuple[int, Seen]]:
    """(Participant.id, what is stored of them) of each of `ids`, some of whom may have no trials."""
    ids = sorted(ids)
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        yield from _read(session, chunk, stimuli)


def _read(session: Session, ids: list[int], stimuli: Stimuli) -> Iterator[tuple[int, Seen]]:
    rows = session.execute(
        select(
            Trial.participant_id,
            Trial.kind,
            Trial.stimulus_id,
            Trial.clean_image_id,
            Trial.placebo_label,
            Trial.judging_order,
            Response.label,
            Response.runner_up,
            Response.rt_ms,
            _noted(Response),
            Judgment.plausible,
            Judgment.rt_ms,
            _noted(Judgment),
        )
        .outerjoin(Response, Response.trial_id == Trial.id)
        .outerjoin(Judgment, Judgment.trial_id == Trial.id)
        .where(Trial.participant_id.in_(ids))
        .order_by(Trial.participant_id, Trial.position)
    ).all()
    found: dict[int, Seen] = {}
    if rows:
        found = _seen(rows, stimuli)
    nothing = Seen(0, 0, 0, 0, 0, UNDISTURBED, np.empty((0, 6), np.int32), np.empty((0, 2)))
    return ((id_, found.get(id_, nothing)) for id_ in ids)


def _seen(rows: Sequence[Row[*tuple[Any, ...]]], stimuli: Stimuli) -> dict[int, Seen]:
    """Participant.id -> what these trials say, one at least, in the order of participant and position."""
    who, kind, stimulus, clean, placebo, order, *answers = zip(*rows, strict=True)
    label, second, label_ms, label_notes, verdict, verdict_ms, verdict_notes = answers

    def whether(truths: Iterable[bool]) -> Mask:
        return np.fromiter(truths, np.bool_, len(rows))

    people = np.array(who, np.int64)
    starts = np.flatnonzero(np.diff(people, prepend=people[0] - 1))
    answered = whether(name is not None for name in label)
    main = answered & whether(k == "main" for k in kind)
    before: Ints = np.cumsum(main) - main
    # Images are labelled in the order of the trials, so a trial's rank among the answered is its rank of all.
    rank: Ints = before - np.repeat(before[starts], np.diff(starts, append=len(rows)))
    code: dict[str | None, int] = {name: i for i, name in enumerate(stimuli.labels)}
    code |= {NONE_PLAUSIBLE: NONE, None: NOT_ASKED}
    labels = (_coded(label, code), _coded(second, code), _coded(placebo, code))
    shown = np.fromiter((stimuli.row.get(id_, -1) for id_ in stimulus), np.int64, len(rows))
    ints = np.stack([shown, rank, *labels, _coded(verdict, VERDICTS)], axis=1).astype(np.int32)
    floats = np.stack([np.array(ms, np.float64) for ms in (label_ms, verdict_ms)], axis=1)  # None becomes NaN
    right = whether(
        k == "control" and name is not None and name == stimuli.clean.get(id_)
        for k, name, id_ in zip(kind, label, clean, strict=True)
    )
    to_judge, judged = (whether(value is not None for value in column) for column in (order, verdict))
    marks = np.stack([np.ones_like(main), answered, to_judge, judged, right], axis=1).astype(np.int64)
    counts = np.add.reduceat(marks, starts, axis=0).tolist()
    disturbances = _disturbances(who, (label_notes, verdict_notes))
    found: dict[int, Seen] = {}
    ends = [*starts.tolist()[1:], len(rows)]
    for start, end, own in zip(starts.tolist(), ends, counts, strict=True):
        noted = disturbances.get(who[start], UNDISTURBED)
        its = np.flatnonzero(main[start:end]) + start  # copies, so that nothing keeps the whole
        found[who[start]] = Seen(own[0], own[1], own[2], own[3], own[4], noted, ints[its], floats[its])
    return found


def _coded(values: Sequence[Any], code: Mapping[Any, int]) -> Ints:
    return np.fromiter((code[value] for value in values), np.int64, len(values))


def _noted(table: type[Response] | type[Judgment]) -> ColumnElement[str | None]:
    """What the page noted with an answer, as text, where one of DISTURBANCES may be more than 0."""
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
    return case((noted, text))


def _disturbances(who: Sequence[int], notes: Iterable[Sequence[str | None]]) -> dict[int, dict[str, int]]:
    """Participant.id -> in how many answers each of DISTURBANCES was noted; who had none is left out."""
    found: dict[int, dict[str, int]] = {}
    for column in notes:
        for id_, written in zip(who, column, strict=True):
            if written is None:
                continue
            display = json.loads(written)
            for name in DISTURBANCES:
                value = display.get(name)
                if isinstance(value, int | float) and value > 0:  # what a client sends may be anything
                    found.setdefault(id_, dict(UNDISTURBED))[name] += 1
    return found


@dataclass(frozen=True)
class ScoredAnswers:
    """Answers with what hides behind each image and every outcome; all of shape (answers,)."""

    answers: Answers
    pack: Ints  # place in the study's packs
    model: Ints  # place in the list of models that `scored` was given
    image: Ints  # as in Stimuli
    source: Ints
    target: Ints
    outcomes: dict[str, Scored]

    def where(self, mask: Mask) -> ScoredAnswers:
        return ScoredAnswers(
            answers=Answers(*(column[mask] for column in vars(self.answers).values())),
            pack=self.pack[mask],
            model=self.model[mask],
            image=self.image[mask],
            source=self.source[mask],
            target=self.target[mask],
            outcomes={name: Scored(o.hit[mask], o.counted[mask]) for name, o in self.outcomes.items()},
        )


def scored(answers: Answers, stimuli: Stimuli, models: Sequence[str]) -> ScoredAnswers:
    """Look behind the images: the one place where answers meet source, target and model."""
    place = {model: i for i, model in enumerate(models)}
    model_of = np.array([place[model] for model in stimuli.model], np.int64)
    source, target = stimuli.source[answers.stimulus], stimuli.target[answers.stimulus]
    return ScoredAnswers(
        answers=answers,
        pack=stimuli.pack[answers.stimulus],
        model=model_of[answers.stimulus],
        image=stimuli.image[answers.stimulus],
        source=source,
        target=target,
        outcomes=outcomes.score(
            answers.first, answers.second, answers.verdict, source, target, answers.placebo
        ),
    )
