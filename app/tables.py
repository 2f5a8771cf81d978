"""The rows of the export's data files beside the responses; the columns are the codebook's."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import observations
from app.codebook import DISPLAY, TABLES
from app.export import BATCH
from app.models import CleanImage, Comment, Judgment, Participant, RecruiterId, Response, Stimulus, Trial
from app.participation import questions_of
from app.progress import taking_part
from app.results import Results

# What a spreadsheet would run as a formula, and the mark itself, so that taking one mark away gives the text back.
DANGEROUS = re.compile(r"['=+\-@\x00-\x1f\uff1d\uff0b\uff0d\uff20]")
WORD = re.compile(r"[a-z][a-z-]{0,29}")  # of what the browser reports: nothing that a person wrote

Cell = str | int | float | None


def lines(table: str, rows: Iterable[list[Cell]]) -> Iterator[str]:
    """A data file in pieces: its columns' names, then its rows."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(TABLES[table].columns)
    for i, row in enumerate(rows, start=1):
        writer.writerow(
            ["" if cell is None else repr(cell) if isinstance(cell, float) else cell for cell in row]
        )
        if i % BATCH == 0:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def participants(session: Session, found: Results) -> Iterator[list[Cell]]:
    """Everybody who began; of the withdrawn only that they did."""
    more = {
        row.number: row
        for row in session.execute(
            select(
                Participant.number,
                Participant.consent_language,
                Participant.runner_up_first,
                Participant.grid_order,
            ).where(*observations.belonging(found.study, found.data))
        )
    }
    simulated = int(found.data == "simulated")
    for person in found.progress:
        row: list[Cell] = [person.pseudonym, found.study.slug, found.study.version, simulated, person.number]
        row.append(person.state)
        if person.state == "withdrawn":
            yield row + [""] * (len(TABLES["participants"].columns) - len(row))
            continue
        own = more[person.number]
        yield [
            *row,
            _instant(person.started_at),
            _instant(person.last_seen_at),
            _instant(person.finished_at),
            person.excluded or "",
            person.language,
            own.consent_language,
            int(own.runner_up_first),
            " ".join(questions_of(found.definition, own.runner_up_first)),
            " ".join(own.grid_order),
        ]


def trials(session: Session, found: Results) -> Iterator[list[Cell]]:
    """What the responses do not say about each answered trial, in their order."""
    rows = session.execute(
        select(
            Participant.pseudonym,
            Trial.position,
            Trial.kind,
            func.coalesce(Stimulus.source_index, CleanImage.source_index),
            Trial.placebo_label,
            Trial.judging_order,
            Judgment.answered_at,
            Response.display,
            Judgment.display,
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
    for *known, judged_at, labelling, judging in rows:
        yield [*known, _instant(judged_at), *_display(labelling), *_display(judging)]


def stimuli(session: Session, found: Results) -> Iterator[list[Cell]]:
    """The stimuli of the study's packs, in the packs' order."""
    for link in found.study.packs:
        rows = session.scalars(select(Stimulus).where(Stimulus.pack_id == link.pack_id).order_by(Stimulus.id))
        for s in rows:
            yield [
                s.sha256,
                link.pack.name,
                s.model,
                s.source_index,
                s.source_label,
                s.target_label,
                s.prediction,
                s.target_probability,
                s.iterations,
                s.pixels_changed,
                s.l2,
                s.linf,
            ]


def comments(session: Session, found: Results) -> Iterator[list[Cell]]:
    rows = session.execute(
        select(Participant.pseudonym, Comment.written_at, Comment.text)
        .join(Comment, Comment.participant_id == Participant.id)
        .where(*taking_part(found.study, found.data), Comment.text != "")
        .order_by(Participant.number)
    )
    for pseudonym, written_at, text in rows:
        yield [pseudonym, _instant(written_at), marked(text)]


def recruiter_ids(session: Session, found: Results) -> Iterator[list[Cell]]:
    rows = session.execute(
        select(Participant.pseudonym, RecruiterId.name, RecruiterId.value)
        .join(RecruiterId, RecruiterId.participant_id == Participant.id)
        .where(*taking_part(found.study, found.data))
        .order_by(Participant.number, RecruiterId.name)
    )
    for pseudonym, name, value in rows:
        yield [pseudonym, marked(name), marked(value)]


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


def _instant(at: datetime | None) -> str:
    return "" if at is None else at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _display(reported: dict[str, Any] | None) -> list[Cell]:
    """The columns of DISPLAY, then how many entries found no place there; a client may report anything."""
    if reported is None:
        return [None] * (len(DISPLAY) + 1)
    cells: dict[str, Cell] = {}
    for name, about in DISPLAY.items():
        value = reported.get(name)
        if about.numeric and isinstance(value, int | float):
            cells[name] = int(value) if isinstance(value, bool) else value
        elif not about.numeric and isinstance(value, str) and WORD.fullmatch(value):
            cells[name] = value
    told = sum(value is not None for value in reported.values())
    return [*(cells.get(name) for name in DISPLAY), told - len(cells)]
