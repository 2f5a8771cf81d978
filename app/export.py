"""The researcher's downloads: a study's answers as CSV, and the whole export as one file."""

from collections.abc import Iterator
from typing import IO

from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse

from app import auth, bundle, progress, tables
from app import definition as definitions
from app.audit import Event, record_download
from app.models import Study
from app.showing import Mem, Selected, select_study, shown
from app.web import Db, now

router = APIRouter(dependencies=[Depends(auth.require_researcher)])

PIECE = 64 * 1024  # bytes


@router.get("/results/{slug}/responses.csv")
def responses_csv(selected: Selected, db: Db, memory: Mem) -> StreamingResponse:
    """The answered trials, one row each."""
    with db.read() as session:
        study, data = select_study(session, selected)
    record_download(db, Event.EXPORTED, study, data, "responses.csv", now())

    def lines() -> Iterator[str]:
        # One reading session: the rows and who is excluded are of the same instant.
        with db.read() as session:
            here = session.get_one(Study, study.id)
            with memory.lock:
                people = progress.monitor(session, here, definitions.of(here), data, memory)
            yield from tables.responses_csv(session, here, data, people.excluded_pseudonyms)

    name = f"{study.slug}-{study.version}-{data}.csv"
    return StreamingResponse(lines(), media_type="text/csv; charset=utf-8", headers=_as_file(name))


@router.get("/results/{slug}/export.zip")
def export_zip(
    selected: Selected, db: Db, memory: Mem, comments: bool = False, recruiter_ids: bool = False
) -> StreamingResponse:
    """Data, codebook, study, packs, results and scripts; with comments and recruiters' ids only on request."""
    with db.read() as session:
        found = shown(session, db, *select_study(session, selected), memory)
        file = bundle.zipped(session, found, comments=comments, recruiter_ids=recruiter_ids)
    more = {"comments": comments, "recruiter_ids": recruiter_ids}
    record_download(db, Event.EXPORTED, found.study, found.data, "export.zip", now(), **more)
    size = file.seek(0, 2)
    file.seek(0)
    headers = _as_file(bundle.file_name(found)) | {"Content-Length": str(size)}
    return StreamingResponse(_pieces(file), media_type="application/zip", headers=headers)


def _as_file(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE):
            yield piece
