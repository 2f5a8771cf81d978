"""How results come to be shown, on a page, in a file or by command: which ones, and with what on record."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from fastapi import Depends, Query, Request
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app import audit, printed, progress, results
from app import definition as definitions
from app.audit import Event
from app.db import Database
from app.models import SeenLook, Study, Unmasking
from app.observations import Data, Memory
from app.outcomes import OUTCOMES
from app.participation import Refusal
from app.results import Results
from app.sheet import ENOUGH
from app.web import now

WORDING: Mapping[str, Any] = {"printed": printed, "outcomes": OUTCOMES, "enough": ENOUGH}
"""What the templates of results need besides the results."""


@dataclass(frozen=True)
class Which:
    """Which version and which participants an address is about."""

    slug: str
    version: str | None
    data: Data | None


def which(
    slug: str,
    version: Annotated[str | None, Query(pattern="^[0-9a-f]{12}$")] = None,
    data: Annotated[Data | None, Query()] = None,
) -> Which:
    return Which(slug, version, data)


def memory(request: Request) -> Memory:
    found: Memory = request.app.state.memory
    return found


Selected = Annotated[Which, Depends(which)]
Mem = Annotated[Memory, Depends(memory)]


def select_study(session: Session, selected: Which) -> tuple[Study, Data]:
    """The version and kind of participants that an address names. Raises Refusal 404."""
    if selected.version:
        study = session.scalar(
            select(Study).where(Study.slug == selected.slug, Study.sha256.startswith(selected.version))
        )
    else:
        study = definitions.active(session, selected.slug)
    if study is None:
        raise Refusal(404, f"There is no such study or version here: {selected.slug!r}.")
    return study, selected.data or progress.default_data(session, study)


def shown(session: Session, db: Database, study: Study, data: Data, memory: Memory | None = None) -> Results:
    """The results that are about to be shown, of `session`'s instant.

    That comparisons or a look are seen is recorded first: what has been seen is not masked, nor made anew over
    other people, should somebody withdraw later. Raises OperationalError where it cannot be recorded.
    """
    found = results.compute(session, study, data, memory, now())
    if not (found.masked or found.seen_before) or any(
        look.found and not look.seen_at for look in found.looks
    ):
        record(db, found)
        found = replace(
            found,
            looks=[
                replace(look, seen_at=found.summary.at) if look.found and not look.seen_at else look
                for look in found.looks
            ],
        )
    return found


def record(db: Database, found: Results, unmask: bool = False) -> None:
    """Write down what `found` shows; with `unmask` also that its comparisons are to be shown from now on."""
    kind = {"study_id": found.study.id, "simulated": found.data == "simulated", "at": found.summary.at}
    rows: list[tuple[Unmasking | SeenLook, Event, dict[str, str | int | bool]]] = [
        (SeenLook(**kind, n=look.n, comparison=asdict(look.found)), Event.LOOKED, {"n": look.n})
        for look in found.looks
        if look.found and not look.seen_at
    ]
    if not found.seen_before and (unmask or not found.masked):
        shown_at: dict[str, str | int | bool] = {"n": found.included, "early": found.masked}
        rows.append((Unmasking(**kind, n=found.included), Event.UNMASKED, shown_at))
    which = {"version": found.study.version, "data": found.data}
    for row, event, detail in rows:
        with db.write() as session, suppress(IntegrityError):  # two at once: the first is on record
            session.add(row)
            audit.record(session, event, study=found.study.slug, detail=which | detail, now=found.summary.at)
            session.commit()


def query(found: Results) -> str:
    """The part of an address that names a version and a kind of participants."""
    return f"version={found.study.version}&data={found.data}"
