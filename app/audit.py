"""The log of what researchers did: written in the transaction of what it records, read, and never changed.

Nobody's name, address, token or answer is in it. Not recorded: that a page or `/results/{slug}.json` was read, as
browsers and programs do every few seconds, and as it shows sums over participants, never an answer; what such a
reading shows for the first time, comparisons or a look, is recorded.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import Database
from app.models import AuditEntry, Study


class Event(StrEnum):
    """Everything that is recorded, as the log says it."""

    SIGNED_IN = "signed in"
    PASSWORD_REFUSED = "password refused"
    LINK_REFUSED = "sign-in link refused"
    SIGNED_OUT = "signed out"
    PASSWORD_SET = "password set"
    LINK_MADE = "sign-in link made"
    EXPORTED = "exported"
    REPORTED = "report written"
    UNMASKED = "comparisons unmasked"  # the first time that they are shown; the detail says whether early
    LOOKED = "look first seen"
    WITHDRAWN = "participant withdrew"
    BACKED_UP = "backed up"
    RESTORED = "restored"
    ERASED = "erased"


def record(
    session: Session,
    event: Event,
    *,
    study: str | None = None,
    detail: Mapping[str, str | int | bool] | None = None,
    now: datetime,
) -> None:
    """Add an entry; the caller commits it, with what it records. `study` is a slug; `detail` is of plain words and
    counts, nothing of a person."""
    session.add(AuditEntry(at=now, event=str(event), study=study, detail=dict(detail or {})))


def record_download(
    db: Database, event: Event, study: Study, data: str, file: str, now: datetime, **more: str | int | bool
) -> None:
    """Put on record that a study's answers or results are handed out, before they are.

    Raises OperationalError where that cannot be; then nothing is handed out.
    """
    detail = {"file": file, "version": study.version, "data": data} | more
    with db.write() as session:
        record(session, event, study=study.slug, detail=detail, now=now)
        session.commit()


def entries(
    session: Session, most: int | None = None, before: int | None = None, since: datetime | None = None
) -> Sequence[AuditEntry]:
    """The latest `most` entries, or all, the latest first; before the entry of that id, since that instant."""
    query = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(most)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    if since is not None:
        query = query.where(AuditEntry.at >= since)
    return session.scalars(query).all()


def in_words(entry: AuditEntry) -> str:
    """The detail in one line: "by: password, n: 3"."""
    return ", ".join(f"{name}: {value}" for name, value in entry.detail.items())
