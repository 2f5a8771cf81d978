"""`GET /healthz`: this process answers. `GET /readyz`: it can carry a study, so that requests may be sent to it."""

import logging
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sqlalchemy import Connection, Engine, exists, func, select, text

from app import logs, schema
from app.models import Pack, Stimulus, Study, StudyPack
from app.probe import Probe

router = APIRouter()

WITHIN_S = 2.0
ROOM_BYTES = 256 * 1024  # that must fit on the disk beside a SQLite file
CHECKS = ("database", "writable", "schema", "studies", "packs")

log = logging.getLogger("app.ready")


@router.get("/healthz")
async def healthz() -> JSONResponse:
    return JSONResponse({"status": "ok"})


@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """200 {"status": "ready"} or 503, and what each check says; within seconds whatever the database does."""
    if request.app.state.stopping():
        return JSONResponse({"status": "stopping", "checks": {}}, 503)
    probe: Probe[dict[str, str]] = request.app.state.readiness
    try:
        checks = await probe.answer(WITHIN_S)
    except TimeoutError:
        checks = {"database": f"no answer within {WITHIN_S:g} s"}
    except Exception as error:
        log.warning("not ready: %s", logs.reason(error))
        checks = {"database": "away, or refuses"}
    ready = all(checks.get(name) in ("ok", "busy") for name in CHECKS)
    return JSONResponse(
        {"status": "ready" if ready else "not ready", "checks": checks}, 200 if ready else 503
    )


def check(engine: Engine) -> dict[str, str]:
    """What is needed to serve participants: "ok", or in a few words why not. Raises what the database raises."""
    with engine.connect() as connection:
        checks = {"database": "ok" if connection.scalar(text("SELECT 1")) == 1 else "wrong answer"}
        checks["writable"] = (
            _file_writable(engine) if engine.dialect.name == "sqlite" else _writable(connection)
        )
        head = ScriptDirectory.from_config(schema.migrations()).get_current_head()
        revision = MigrationContext.configure(connection).get_current_revision()
        if revision != head:
            return checks | {"schema": "not of this version of the program"}
        return checks | {"schema": "ok"} | _studies(connection)


def _writable(connection: Connection) -> str:
    read_only = connection.scalar(
        text("SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean")
    )
    return "read-only" if read_only else "ok"


def _file_writable(engine: Engine) -> str:
    """Nothing is written to the database itself; a writer who has it at the moment is no fault."""
    file = Path(str(engine.url.database)).resolve()
    try:
        with tempfile.TemporaryFile(dir=file.parent) as beside:
            beside.write(bytes(ROOM_BYTES))
            beside.flush()
    except OSError as error:
        return f"no: {error.strerror}"
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=0)) as own:
            own.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        busy = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        return "busy" if busy else f"no: {logs.reason(error)}"
    return "ok"


def _studies(connection: Connection) -> dict[str, str]:
    """That somebody can begin: an open study, and all packs of each in the database with their images."""
    stimuli = exists().where(Stimulus.pack_id == Pack.id)
    rows: Any = connection.execute(
        select(Study.slug, Study.definition, Pack.sha256)
        .outerjoin(StudyPack, StudyPack.study_id == Study.id)
        .outerjoin(Pack, (Pack.id == StudyPack.pack_id) & stimuli)
        .where(Study.open, Study.activated_at == _activated(Study.slug))
    ).all()
    needed: dict[str, set[str]] = {}
    found: dict[str, set[str]] = {}
    for slug, definition, sha256 in rows:
        needed[slug] = set(definition["packs"].values())
        found.setdefault(slug, set()).add(sha256)
    missing = sorted(slug for slug in needed if not needed[slug] or not needed[slug] <= found[slug])
    return {
        "studies": "ok" if needed else "none is open",
        "packs": f"missing for {', '.join(missing)}" if missing else "ok",
    }


def _activated(slug: Any) -> Any:
    """When the version that takes participants was made that."""
    versions = Study.__table__.alias()
    return select(func.max(versions.c.activated_at)).where(versions.c.slug == slug).scalar_subquery()
