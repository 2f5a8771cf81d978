"""A participant begins: number, token, and all trials assigned in one transaction."""

import secrets
from datetime import datetime, timedelta

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from app import definition as definitions
from app.assignment import Candidate, assign
from app.models import CleanImage, Pack, Participant, RecruiterId, Response, Stimulus, Study, Trial
from app.participation import ALPHABET, Refusal
from app.stats import placebo_label

SIMULATED = "simulated"  # the external id that `python -m app simulate` marks its participants with
ABANDONED_AFTER = timedelta(hours=2)  # an unfinished session this long silent no longer holds its images


def start(session: Session, slug: str, external: dict[str, str], now: datetime) -> Participant:
    """A new participant with a new token and all trials assigned; committed."""
    study = definitions.active(session, slug)
    if study is None or not study.open:
        raise Refusal(404, f"There is no study {slug!r} open here.")
    # Two who arrive together must not get one number: on PostgreSQL the row lock serializes them, on SQLite the
    # write lock of the transaction does.
    session.execute(select(Study.id).where(Study.id == study.id).with_for_update())
    definition = definitions.of(study)
    simulated = SIMULATED in external
    last = session.scalar(select(func.max(Participant.number)).where(Participant.study_id == study.id))
    number = (last or 0) + 1
    pack_ids = [link.pack_id for link in study.packs]
    candidates = _candidates(session, pack_ids)
    try:
        assignment = assign(
            seed=definition.seed,
            number=number,
            candidates=list(candidates.values()),
            shown=exposures(session, study.id, simulated, now),
            practice_pool=session.scalars(
                select(CleanImage.id).where(CleanImage.pack_id.in_(pack_ids), CleanImage.role == "clean")
            ).all(),
            practice=definition.practice,
            grids=[f"{link.pack.name}/{model}" for link in study.packs for model in sorted(link.pack.grids)],
        )
    except ValueError as error:
        raise Refusal(409, f"This study cannot take participants: {error}.") from error
    participant = Participant(
        study_id=study.id,
        number=number,
        token=secrets.token_urlsafe(24),
        pseudonym="P-" + "".join(secrets.choice(ALPHABET) for _ in range(8)),
        simulated=simulated,
        grid_order=list(assignment.grids),
        consented_at=now,
        last_seen_at=now,
    )
    session.add(participant)
    session.flush()
    clean = dict(
        session.execute(
            select(CleanImage.id, CleanImage.sha256).where(CleanImage.pack_id.in_(pack_ids))
        ).all()
    )
    images = dict(
        session.execute(select(Stimulus.id, Stimulus.sha256).where(Stimulus.pack_id.in_(pack_ids))).all()
    )
    labels = study.packs[0].pack.labels
    judging = {stimulus: order for order, stimulus in enumerate(assignment.judging, start=1)}
    judged = "plausibility" in definition.questions
    session.add_all(
        Trial(participant_id=participant.id, position=position, kind="practice", sha256=clean[image])
        for position, image in enumerate(assignment.practice, start=1)
    )
    for position, stimulus in enumerate(assignment.labelling, start=1 + definition.practice):
        shown = candidates[stimulus]
        session.add(
            Trial(
                participant_id=participant.id,
                position=position,
                judging_order=judging[stimulus] if judged else None,
                kind="main",
                stimulus_id=stimulus,
                sha256=images[stimulus],
                placebo_label=placebo_label(
                    definition.seed, images[stimulus], shown.source_label, shown.target_label, labels
                ),
            )
        )
    session.add_all(
        RecruiterId(participant_id=participant.id, name=name, value=value) for name, value in external.items()
    )
    session.commit()
    return participant


def exposures(session: Session, study_id: int, simulated: bool, now: datetime) -> dict[int, int]:
    """How often each stimulus has been shown: answered, or assigned to somebody who may still be at it."""
    rows = session.execute(
        select(Trial.stimulus_id, func.count())
        .join(Participant, Participant.id == Trial.participant_id)
        .outerjoin(Response, Response.trial_id == Trial.id)
        .where(
            Participant.study_id == study_id,
            Participant.simulated == simulated,
            Participant.withdrawn_at.is_(None),
            Trial.kind == "main",
            or_(Response.trial_id.is_not(None), Participant.last_seen_at > now - ABANDONED_AFTER),
        )
        .group_by(Trial.stimulus_id)
    )
    return {stimulus: count for stimulus, count in rows if stimulus is not None}


def _candidates(session: Session, pack_ids: list[int]) -> dict[int, Candidate]:
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
