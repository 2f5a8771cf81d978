"""A study's answers as CSV, one row a trial, and its results as JSON."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.models import CleanImage, Judgment, Pack, Participant, Response, Stimulus, Study, Trial
from app.progress import Data, taking_part
from app.results import Comparison, Results, outcome_columns
from app.stats import Rate

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
    outcomes = outcome_columns()
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
            outcomes["human_fooled"].label("fooled"),
            outcomes["mistake_reasonable"].label("reasonable"),
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
                _flag(row.fooled) if main else "",
                _flag(row.reasonable) if main else "",
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


def results_json(results: Results) -> dict[str, Any]:
    """The results of DESIGN's contract; rates and p-values in full precision, null where there is none."""
    return {
        "study": results.study.slug,
        "version": results.study.version,
        "data": results.data,
        "masked": results.masked,
        "unmasked": {"at": results.unmasking.at.isoformat(), "n": results.unmasking.n}
        if results.unmasking
        else None,
        "target_participants": results.definition.target_participants,
        "participants": {
            "started": results.started,
            "finished": results.finished,
            "excluded": results.excluded,
            "withdrawn": results.withdrawn,
            "included": results.included,
        },
        "responses": results.responses,
        "packs": {
            name: {
                "models": {
                    model: {outcome: _rate(rate) for outcome, rate in rates.items()}
                    for model, rates in pack.models.items()
                },
                "comparisons": [_comparison(c) for c in pack.comparisons],
            }
            for name, pack in results.packs.items()
        },
    }


def _rate(rate: Rate) -> dict[str, Any]:
    return {"count": rate.count, "n": rate.n, "rate": rate.rate, "low": rate.low, "high": rate.high}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return vars(comparison).copy()


def _flag(value: bool | None) -> str:
    return "" if value is None else str(int(value))


def _number(value: float | None) -> str:
    # As measured: a rounded time could fall on the other side of an exclusion rule.
    return "" if value is None else repr(value)
