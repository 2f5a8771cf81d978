"""A participant begins, or comes back: number, token, and all trials assigned in one transaction."""

import secrets
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from app import definition as definitions
from app import recruiters
from app.assignment import Assignment, Candidate, assign, placebo_label
from app.definition import Definition
from app.exposures import Exposures
from app.i18n import N_
from app.models import CleanImage, Pack, Participant, RecruiterId, Stimulus, Study, Trial
from app.participation import ALPHABET, Refusal

SIMULATED = "simulated"  # the external id that `python -m app simulate` marks its participants with


@dataclass(frozen=True)
class Beginning:
    """What a client sends to begin a session."""

    slug: str
    external: dict[str, str]  # from the recruiter's link
    request_id: uuid.UUID | None = None  # the client's own: asking again begins no second session
    language: str | None = None  # of LANGUAGES; None: the study's own
    version: str | None = None  # of the study whose consent was given; None: the present one

    @property
    def person(self) -> tuple[str, str] | None:
        """(name, value) of the id that stands for one person; simulated participants are nobody."""
        return None if SIMULATED in self.external else recruiters.person(self.external)


def returning(session: Session, beginning: Beginning) -> Participant | None:
    """The participant who sent this request before, or whom the recruiter has sent here before.

    Raises Refusal 409 for a request that began something else. Policies are those of the present study file.
    """
    if beginning.request_id is not None:
        known = session.scalar(select(Participant).where(Participant.request_id == beginning.request_id))
        if known is not None:
            return _same_beginning(session, known, beginning)
    if beginning.person is None or _policy(session, beginning.slug) == "new":
        return None
    name, value = beginning.person
    return session.scalar(
        select(Participant)
        .join(RecruiterId)
        .join(Study, Study.id == Participant.study_id)
        .where(
            Study.slug == beginning.slug,
            Participant.simulated.is_(False),
            RecruiterId.name == name,
            RecruiterId.value == value,
        )
        # Where an id had several sessions, under another policy, one that was finished counts.
        .order_by(Participant.finished_at.is_(None), Participant.id.desc())
        .limit(1)
    )


def _same_beginning(session: Session, known: Participant, beginning: Beginning) -> Participant:
    if known.study.slug != beginning.slug:
        raise Refusal(409, N_("This request_id has begun a session of another study."))
    rows = session.scalars(select(RecruiterId).where(RecruiterId.participant_id == known.id))
    ids = {row.name: row.value for row in rows}
    if known.withdrawn_at is None and recruiters.person(ids) != recruiters.person(beginning.external):
        raise Refusal(409, N_("This request_id has begun the session of somebody else."))
    return known


def queue(session: Session, slug: str) -> None:
    """Makes this writing transaction wait until those before it that begin sessions of the study have ended.

    Two who come together must not get one number, nor one person two sessions. On SQLite the write lock sees to it;
    here the rows of all versions are locked, but not against others' rows that refer to them.
    """
    rows = select(Study.id).where(Study.slug == slug).order_by(Study.id)
    session.execute(rows.with_for_update(key_share=True))


def refused(session: Session, known: Participant, beginning: Beginning, own_browser: bool) -> bool:
    """Whether the study's policy keeps a returning participant out; never from the browser that began."""
    if own_browser or beginning.person is None or known.request_id == beginning.request_id is not None:
        return False
    return _policy(session, beginning.slug) == "refuse"


def _policy(session: Session, slug: str) -> str:
    study = definitions.active(session, slug)
    return definitions.of(study).recruitment.returning if study else "resume"


def open_study(session: Session, slug: str) -> Study:
    """The version that takes participants. Raises Refusal 404."""
    study = definitions.active(session, slug)
    if study is None or not study.open:
        raise Refusal(404, N_("There is no study “%(slug)s” open here."), {"slug": slug})
    return study


@dataclass(frozen=True)
class Pool:
    """The images of a study's packs, which never change."""

    candidates: dict[int, Candidate]  # by the stimulus's id
    stimuli: dict[int, str]  # id -> sha256 of the image
    clean: dict[int, str]  # id of an unmodified image -> sha256
    unattacked: list[int]  # ids of those that are for practice and control trials


class Remembered:
    """What one server process need not read anew for every session that begins."""

    def __init__(self) -> None:
        self.exposures = Exposures()
        self._pools: dict[tuple[str, ...], Pool] = {}

    def pool(self, session: Session, study: Study) -> Pool:
        packs = tuple(link.pack.sha256 for link in study.packs)
        if packs not in self._pools:
            self._pools[packs] = _pool(session, [link.pack_id for link in study.packs])
        return self._pools[packs]


def start(
    session: Session, beginning: Beginning, now: datetime, remembered: Remembered | None = None
) -> Participant:
    """A new participant with a new token and all trials assigned; committed.

    `queue` and who may be `returning` come before, in the same writing session.
    """
    remembered = remembered or Remembered()
    study = open_study(session, beginning.slug)
    if beginning.version not in (None, study.version):
        raise Refusal(
            409,
            N_("The study has changed since this page was opened; please read it again."),
            changed=True,
        )
    definition = definitions.of(study)
    simulated = SIMULATED in beginning.external
    last = session.scalar(select(func.max(Participant.number)).where(Participant.study_id == study.id))
    number = (last or 0) + 1
    pool = remembered.pool(session, study)
    try:
        assignment = assign(
            seed=definition.seed,
            number=number,
            candidates=list(pool.candidates.values()),
            shown=remembered.exposures.count(session, study.id, simulated, now),
            clean_pool=pool.unattacked,
            practice=definition.practice,
            controls=definition.controls,
            grids=[f"{link.pack.name}/{model}" for link in study.packs for model in sorted(link.pack.grids)],
        )
    except ValueError as error:
        raise Refusal(
            409, N_("This study cannot take participants: %(reason)s."), {"reason": str(error)}
        ) from error
    language = beginning.language if beginning.language in definition.languages else definition.language
    participant = Participant(
        study_id=study.id,
        number=number,
        token=secrets.token_urlsafe(24),
        pseudonym="P-" + drawn(8),
        withdrawal_code="-".join(drawn(4) for _ in range(3)),
        request_id=beginning.request_id,
        language=language,
        consent_language=language,
        runner_up_first=_runner_up_first(definition, number),
        simulated=simulated,
        grid_order=list(assignment.grids),
        consented_at=now,
        last_seen_at=now,
    )
    session.add(participant)
    session.flush()
    session.execute(insert(Trial), _trials(study, definition, participant.id, assignment, pool))
    once = definition.recruitment.returning != "new"
    session.add_all(
        RecruiterId(
            participant_id=participant.id,
            name=name,
            value=value,
            identifies_in=beginning.slug if once and (name, value) == beginning.person else None,
        )
        for name, value in beginning.external.items()
    )
    session.commit()
    return participant


def _runner_up_first(definition: Definition, number: int) -> bool:
    """As the file has it; where it rotates, the other way round for every second participant."""
    asked = definition.questions
    if "runner_up" not in asked:
        return False
    rotated = definition.rotate_questions and number % 2 == 0
    return (asked.index("runner_up") < asked.index("label")) != rotated


def drawn(length: int) -> str:
    """So many letters and digits at random, as pseudonyms and codes are made of."""
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def _trials(
    study: Study, definition: Definition, participant_id: int, assignment: Assignment, pool: Pool
) -> list[dict[str, Any]]:
    """Rows: practice first, then the stimuli with the control images among them."""
    labels = study.packs[0].pack.labels
    judging = {stimulus: order for order, stimulus in enumerate(assignment.judging, start=1)}
    judged = "plausibility" in definition.questions
    trials: list[dict[str, Any]] = []

    def add(kind: str, sha256: str, **more: object) -> None:
        place = {"participant_id": participant_id, "position": len(trials) + 1}
        unset = {"judging_order": None, "stimulus_id": None, "clean_image_id": None, "placebo_label": None}
        trials.append(place | {"kind": kind, "sha256": sha256} | unset | more)

    for image in assignment.practice:
        add("practice", pool.clean[image], clean_image_id=image)
    for place, stimulus in enumerate(assignment.labelling, start=1):
        shown = pool.candidates[stimulus]
        add(
            "main",
            pool.stimuli[stimulus],
            judging_order=judging[stimulus] if judged else None,
            stimulus_id=stimulus,
            placebo_label=placebo_label(
                definition.seed, pool.stimuli[stimulus], shown.source_label, shown.target_label, labels
            ),
        )
        for after, image in assignment.controls:
            if after == place:
                add("control", pool.clean[image], clean_image_id=image)
    return trials


def _pool(session: Session, pack_ids: list[int]) -> Pool:
    clean = session.execute(
        select(CleanImage.id, CleanImage.sha256, CleanImage.role).where(CleanImage.pack_id.in_(pack_ids))
    ).all()
    stimuli = session.execute(select(Stimulus.id, Stimulus.sha256).where(Stimulus.pack_id.in_(pack_ids)))
    return Pool(
        candidates=candidates_of(session, pack_ids),
        stimuli=dict(stimuli.all()),
        clean={id: sha256 for id, sha256, _ in clean},
        unattacked=[id for id, _, role in clean if role == "clean"],
    )


def candidates_of(session: Session, pack_ids: list[int]) -> dict[int, Candidate]:
    """Every stimulus of the packs, by its id."""
    rows = session.execute(
        select(
            Stimulus.id,
            Pack.name,
            Stimulus.model,
            Stimulus.source_index,
            Stimulus.source_label,
            Stimulus.target_label,
        )
        .join(Pack, Pack.id == Stimulus.pack_id)
        .where(Stimulus.pack_id.in_(pack_ids))
    )
    return {row[0]: Candidate(*row) for row in rows}
