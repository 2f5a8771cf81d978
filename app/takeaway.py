"""The researcher takes everything away: the whole export as one file."""

from collections.abc import Iterator
from typing import IO

from fastapi import APIRouter, Depends
from fastapi.responses import StreamingResponse

from app import auth, bundle, showing
from app.showing import Mem, Selected
from app.web import Db

router = APIRouter(dependencies=[Depends(auth.require_researcher)])

PIECE = 64 * 1024  # bytes


@router.get("/results/{slug}/export.zip")
def export_zip(
    selected: Selected, db: Db, memory: Mem, comments: bool = False, recruiter_ids: bool = False
) -> StreamingResponse:
    """Data, codebook, study, packs, results and scripts; with comments and recruiters' ids only on request."""
    with db.read() as session:
        found = showing.shown(session, db, *showing.select_study(session, selected), memory)
        file = bundle.zipped(session, found, comments=comments, recruiter_ids=recruiter_ids)
    size = file.seek(0, 2)
    file.seek(0)
    return StreamingResponse(
        _pieces(file),
        media_type="application/zip",
        headers={
            "Content-Disposition": f'attachment; filename="{bundle.file_name(found)}"',
            "Content-Length": str(size),
            "Cache-Control": "no-store",
        },
    )


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE):
            yield piece
