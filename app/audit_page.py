"""The audit log, for the researcher to read."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, Response

from app import audit, auth
from app.web import Db, render

router = APIRouter(dependencies=[Depends(auth.require_researcher)], include_in_schema=False)

A_PAGE = 100  # entries


@router.get("/audit", response_class=HTMLResponse)
def audit_page(
    request: Request, db: Db, before: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None
) -> Response:
    with db.read() as session:
        found = audit.entries(session, A_PAGE + 1, before)
    shown = found[:A_PAGE]
    return render(
        request,
        "audit.html",
        entries=shown,
        in_words=audit.in_words,
        earlier=shown[-1].id if len(found) > A_PAGE else None,
        later=before is not None,
    )
