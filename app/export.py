"""The researcher's downloads: a study's answers as CSV, and the whole export as one file."""

import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse

from app import auth, bundle, progress, tables
from app import definition as definitions
from app.audit import Event, record_download
from app.showing import Mem, Selected, select_study, shown
from app.web import Db, now

router = APIRouter(dependencies=[Depends(auth.require_researcher)])

PIECE = 64 * 1024  # bytes


@router.get("/results/{slug}/responses.csv")
def responses_csv(selected: Selected, db: Db, memory: Mem) -> StreamingResponse:
    """The answered trials, one row each."""
    with db.read() as session:  # one, so that the rows and who is excluded are of the same instant
        study, data = select_study(session, selected)
        record_download(db, Event.EXPORTED, study, data, "responses.csv", now())
        with memory.lock:
            people = progress.monitor(session, study, definitions.of(study), data, memory)
        file = _written(tables.responses_csv(session, study, data, progress.excluded_pseudonyms(people.rows)))
    name = f"{study.slug}-{study.version}-{data}.csv"
    return _download(file, "text/csv; charset=utf-8", name)


@router.get("/results/{slug}/export.zip")
def export_zip(
    selected: Selected, db: Db, memory: Mem, comments: bool = False, recruiter_ids: bool = False
) -> StreamingResponse:
    """Data, codebook, study, packs, results and scripts; with comments and recruiters' ids only on request."""
    with db.read() as session:
        found = shown(session, db, *select_study(session, selected), memory)
        more = {"comments": comments, "recruiter_ids": recruiter_ids}
        record_download(db, Event.EXPORTED, found.study, found.data, "export.zip", now(), **more)
        file = bundle.zipped(session, found, **more)
    return _download(file, "application/zip", bundle.file_name(found))


def _written(lines: Iterable[str]) -> IO[bytes]:
    """In a temporary file: whoever takes the download slowly holds no session of the database's."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed by whoever has sent it)
    try:
        file.writelines(line.encode() for line in lines)
    except BaseException:
        file.close()
        raise
    return file


def _download(file: IO[bytes], media_type: str, name: str) -> StreamingResponse:
    size = file.seek(0, 2)
    file.seek(0)
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Cache-Control": "no-store",
        "Content-Length": str(size),
    }
    return StreamingResponse(_pieces(file), media_type=media_type, headers=headers)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE):
            yield piece
