"""A study's answers as CSV, one row a trial."""

import csv
import io
from collections.abc import Iterator

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import (
    NONE_PLAUSIBLE,
    CleanImage,
    Judgment,
    Pack,
    Participant,
    Response,
    Stimulus,
    Study,
    Trial,
)
from app.observations import Data
from app.progress import taking_part

CSV_COLUMNS = (
    "participant",
    "study",
    "version",
    "pack",
    "position",
    "kind",
    "stimulus",
    "model",
    "source_label",
    "target_label",
    "label",
    "runner_up",
    "plausible",
    "fooled",
    "reasonable",
    "label_rt_ms",
    "plausibility_rt_ms",
    "answered_at",
    "excluded",
)
BATCH = 2000


def responses_csv(session: Session, study: Study, data: Data, excluded: frozenset[str]) -> Iterator[str]:
    """The answered trials in lines of CSV; yes and no are 1 and 0, what was not asked is empty.

    `excluded` holds the pseudonyms whose answers the study file's rules leave out.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(CSV_COLUMNS)
    rows = session.execute(
        select(
            Participant.pseudonym,
            Trial.position,
            Trial.kind,
            Trial.sha256,
            Pack.name,
            Stimulus.model,
            func.coalesce(Stimulus.source_label, CleanImage.source_label).label("source_label"),
            Stimulus.target_label,
            Response.label,
            Response.runner_up,
            Judgment.plausible,
            Response.rt_ms.label("label_rt_ms"),
            Judgment.rt_ms.label("plausibility_rt_ms"),
            Response.answered_at,
        )
        .select_from(Trial)
        .join(Participant, Participant.id == Trial.participant_id)
        .join(Response, Response.trial_id == Trial.id)
        .outerjoin(Judgment, Judgment.trial_id == Trial.id)
        .outerjoin(Stimulus, Stimulus.id == Trial.stimulus_id)
        .outerjoin(CleanImage, CleanImage.id == Trial.clean_image_id)
        .outerjoin(Pack, Pack.id == func.coalesce(Stimulus.pack_id, CleanImage.pack_id))
        .where(*taking_part(study, data))
        .order_by(Participant.number, Trial.position)
        .execution_options(yield_per=BATCH)
    )
    for i, row in enumerate(rows, start=1):
        main = row.kind == "main"
        fooled = row.label == row.target_label
        writer.writerow(
            [
                row.pseudonym,
                study.slug,
                study.version,
                row.name or "",
                row.position,
                row.kind,
                row.sha256,
                row.model or "",
                row.source_label or "",
                row.target_label or "",
                row.label,
                row.runner_up or "",
                _flag(row.plausible),
                _flag(fooled) if main else "",
                _flag(fooled or row.target_label == row.runner_up or row.label == NONE_PLAUSIBLE)
                if main
                else "",
                _number(row.label_rt_ms),
                _number(row.plausibility_rt_ms),
                row.answered_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                _flag(row.pseudonym in excluded),
            ]
        )
        if i % BATCH == 0:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def _flag(value: bool | None) -> str:
    return "" if value is None else str(int(value))


def _number(value: float | None) -> str:
    # As measured: a rounded time could fall on the other side of an exclusion rule.
    return "" if value is None else repr(value)
