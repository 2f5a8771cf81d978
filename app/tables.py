"""The rows of the export's data files; the columns and their order are the codebook's."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import observations
from app.codebook import DISPLAY, TABLES
from app.models import (
    NONE_PLAUSIBLE,
    CleanImage,
    Comment,
    Judgment,
    Pack,
    Participant,
    RecruiterId,
    Response,
    Stimulus,
    Study,
    Trial,
)
from app.observations import Data
from app.participation import questions_of
from app.progress import taking_part
from app.results import Results

# What a spreadsheet would run as a formula, and the mark itself, so that taking one mark away gives the text back.
DANGEROUS = re.compile(r"['=+\-@\x00-\x1f\uff1d\uff0b\uff0d\uff20]")
WORD = re.compile(r"[a-z][a-z-]{0,29}")  # of what the browser reports: nothing that a person wrote
BATCH = 2000  # rows written at once

Cell = str | int | float | None
Row = dict[str, Cell]


def responses_csv(session: Session, study: Study, data: Data, excluded: frozenset[str]) -> Iterator[str]:
    """The file of the responses in pieces: the download of its own, and in every export.

    `excluded` holds the pseudonyms whose answers the study file's rules leave out.
    """
    return lines("responses", responses(session, study, data, excluded))


def lines(table: str, rows: Iterable[Row]) -> Iterator[str]:
    """A data file in pieces: its columns' names, then its rows; a cell of None is empty."""
    columns = TABLES[table].columns
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, extrasaction="raise")
    writer.writeheader()
    for i, row in enumerate(rows, start=1):
        if len(row) < len(columns):
            raise ValueError(f"a row of {table} lacks {sorted(columns.keys() - row.keys())}")
        writer.writerow(row)
        if i % BATCH == 0:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def responses(session: Session, study: Study, data: Data, excluded: frozenset[str]) -> Iterator[Row]:
    """The answered trials; yes and no are 1 and 0."""
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
    version = study.version
    for row in rows:
        main = row.kind == "main"
        fooled = row.label == row.target_label
        reasonable = fooled or row.target_label == row.runner_up or row.label == NONE_PLAUSIBLE
        yield {
            "participant": row.pseudonym,
            "study": study.slug,
            "version": version,
            "pack": row.name,
            "position": row.position,
            "kind": row.kind,
            "stimulus": row.sha256,
            "model": row.model,
            "source_label": row.source_label,
            "target_label": row.target_label,
            "label": row.label,
            "runner_up": row.runner_up,
            "plausible": None if row.plausible is None else int(row.plausible),
            "fooled": int(fooled) if main else None,
            "reasonable": int(reasonable) if main else None,
            # As measured: a rounded time could fall on the other side of an exclusion rule.
            "label_rt_ms": row.label_rt_ms,
            "plausibility_rt_ms": row.plausibility_rt_ms,
            "answered_at": _instant(row.answered_at),
            "excluded": int(row.pseudonym in excluded),
        }


def participants(session: Session, found: Results) -> Iterator[Row]:
    """Everybody who began; of the withdrawn only that they did."""
    more = {
        row.number: row
        for row in session.execute(
            select(
                Participant.number,
                Participant.language,
                Participant.consent_language,
                Participant.runner_up_first,
                Participant.grid_order,
            ).where(*observations.belonging(found.study, found.data))
        )
    }
    nothing: Row = dict.fromkeys(TABLES["participants"].columns)
    for person in found.progress:
        row: Row = {
            "participant": person.pseudonym,
            "study": found.study.slug,
            "version": found.study.version,
            "simulated": int(found.data == "simulated"),
            "number": person.number,
            "state": person.state,
        }
        if person.state == "withdrawn":
            yield nothing | row
            continue
        own = more[person.number]
        yield row | {
            "started_at": _instant(person.started_at),
            "last_seen_at": _instant(person.last_seen_at),
            "finished_at": _instant(person.finished_at),
            "excluded_reason": person.excluded,
            "answers": person.answered,
            "answers_asked": person.total,
            "minutes": person.minutes,
            "median_label_rt_ms": person.label_ms,
            "controls_right": person.controls_right,
            "language": own.language,
            "consent_language": own.consent_language,
            "runner_up_first": int(own.runner_up_first),
            "questions": " ".join(questions_of(found.definition, own.runner_up_first)),
            "grid_order": " ".join(own.grid_order),
        }


def trials(session: Session, found: Results) -> Iterator[Row]:
    """What the responses do not say about each answered trial, in their order."""
    rows = session.execute(
        select(
            Participant.pseudonym,
            Trial.position,
            Trial.kind,
            func.coalesce(Stimulus.source_index, CleanImage.source_index).label("source_index"),
            Trial.placebo_label,
            Trial.judging_order,
            Judgment.answered_at.label("judged_at"),
            Response.display.label("labelling"),
            Judgment.display.label("judging"),
        )
        .select_from(Trial)
        .join(Participant, Participant.id == Trial.participant_id)
        .join(Response, Response.trial_id == Trial.id)
        .outerjoin(Judgment, Judgment.trial_id == Trial.id)
        .outerjoin(Stimulus, Stimulus.id == Trial.stimulus_id)
        .outerjoin(CleanImage, CleanImage.id == Trial.clean_image_id)
        .where(*taking_part(found.study, found.data))
        .order_by(Participant.number, Trial.position)
        .execution_options(yield_per=BATCH)
    )
    for row in rows:
        yield {
            "participant": row.pseudonym,
            "position": row.position,
            "kind": row.kind,
            "source_index": row.source_index,
            "placebo_label": row.placebo_label,
            "judging_order": row.judging_order,
            "judged_at": _instant(row.judged_at),
            **{f"label_{name}": cell for name, cell in displayed(row.labelling).items()},
            **{f"plausibility_{name}": cell for name, cell in displayed(row.judging).items()},
        }


def stimuli(session: Session, found: Results) -> Iterator[Row]:
    """The stimuli of the study's packs, in the packs' order."""
    for link in found.study.packs:
        rows = session.scalars(select(Stimulus).where(Stimulus.pack_id == link.pack_id).order_by(Stimulus.id))
        for s in rows:
            yield {
                "stimulus": s.sha256,
                "pack": link.pack.name,
                "model": s.model,
                "source_index": s.source_index,
                "source_label": s.source_label,
                "target_label": s.target_label,
                "prediction": s.prediction,
                "target_probability": s.target_probability,
                "iterations": s.iterations,
                "pixels_changed": s.pixels_changed,
                "l2": s.l2,
                "linf": s.linf,
            }


def comments(session: Session, found: Results) -> Iterator[Row]:
    rows = session.execute(
        select(Participant.pseudonym, Comment.written_at, Comment.text)
        .join(Comment, Comment.participant_id == Participant.id)
        .where(*taking_part(found.study, found.data), Comment.text != "")
        .order_by(Participant.number)
    )
    for pseudonym, written_at, text in rows:
        yield {"participant": pseudonym, "written_at": _instant(written_at), "comment": marked(text)}


def recruiter_ids(session: Session, found: Results) -> Iterator[Row]:
    rows = session.execute(
        select(Participant.pseudonym, RecruiterId.name, RecruiterId.value)
        .join(RecruiterId, RecruiterId.participant_id == Participant.id)
        .where(*taking_part(found.study, found.data))
        .order_by(Participant.number, RecruiterId.name)
    )
    for pseudonym, name, value in rows:
        yield {"participant": pseudonym, "id_name": marked(name), "id_value": marked(value)}


def results_csv(results: dict[str, Any]) -> Iterator[str]:
    """Everything in results.json, one line each: where it stands, and its value (true, false; empty: null)."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("path", "value"))
    for path, value in _leaves(results):
        text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
        writer.writerow((path, text))
    yield buffer.getvalue()


def marked(text: str) -> str:
    """Text that no spreadsheet takes for a formula: with a ' before it where it could. One ' less gives it back."""
    return f"'{text}" if DANGEROUS.match(text) else text


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, f"{path}/{key}" if path else str(key))
    else:
        yield path, tree


def displayed(reported: Mapping[str, Any] | None) -> Row:
    """The columns of DISPLAY, and how many entries found no place there; a client may report anything."""
    cells: Row = dict.fromkeys((*DISPLAY, "display_left_out"))
    if reported is None:
        return cells
    for name, about in DISPLAY.items():
        value = reported.get(name)
        if about.numeric and isinstance(value, int | float):
            cells[name] = int(value) if isinstance(value, bool) else value
        elif not about.numeric and isinstance(value, str) and WORD.fullmatch(value):
            cells[name] = value
    told = sum(value is not None for value in reported.values())
    return cells | {"display_left_out": told - sum(cell is not None for cell in cells.values())}


def _instant(at: datetime | None) -> str | None:
    return None if at is None else at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
