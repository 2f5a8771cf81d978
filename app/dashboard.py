"""The researcher's pages, and the results as JSON."""

from dataclasses import dataclass
from heapq import nlargest
from typing import Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from sqlalchemy import func, select

from app import auth, progress, results
from app import definition as definitions
from app.definition import Definition
from app.models import Participant, Study
from app.results_json import results_json
from app.sheet import sheet
from app.showing import WORDING, Mem, Selected, query, record, select_study, shown
from app.web import Db, now, render

router = APIRouter()
researcher = APIRouter(dependencies=[Depends(auth.require_researcher)])

LATEST = 100  # participants and comments on the page, unless all are asked for


@dataclass(frozen=True)
class StudyRow:
    slug: str
    definition: Definition
    started: int
    finished: int
    simulated: int


@researcher.get("/results", response_class=HTMLResponse, include_in_schema=False)
def overview(request: Request, db: Db) -> Response:
    rows = []
    with db.read() as session:
        for slug in session.scalars(
            select(Study.slug).group_by(Study.slug).order_by(func.min(Study.id))
        ).all():
            study = definitions.active(session, slug)
            if study is None:
                continue
            counts: dict[bool, tuple[int, int]] = {
                simulated: (started, finished)
                for simulated, started, finished in session.execute(
                    select(Participant.simulated, func.count(), func.count(Participant.finished_at))
                    .where(Participant.study_id == study.id)
                    .group_by(Participant.simulated)
                )
            }
            started, finished = counts.get(False, (0, 0))
            pretended, _ = counts.get(True, (0, 0))
            rows.append(StudyRow(slug, definitions.of(study), started, finished, pretended))
    return render(request, "overview.html", studies=rows)


@researcher.get("/results/{slug}.json")
def as_json(selected: Selected, db: Db, memory: Mem) -> Response:
    with db.read() as session:
        found = shown(session, db, *select_study(session, selected), memory)
    return JSONResponse(results_json(found), headers={"Cache-Control": "no-store"})


@researcher.get("/results/{slug}", response_class=HTMLResponse, include_in_schema=False)
def dashboard(
    request: Request, selected: Selected, db: Db, memory: Mem, show: Literal["all"] | None = None
) -> Response:
    with db.read() as session:
        found = shown(session, db, *select_study(session, selected), memory)
        drawn = sheet(session, found)
        comments, written = results.comments(session, found, None if show else LATEST)
        versions = session.scalars(
            select(Study)
            .where(Study.slug == selected.slug)
            .order_by(Study.activated_at.desc(), Study.id.desc())
        ).all()
        kinds = progress.kinds(session, found.study)
    listed = len(found.progress) if show else LATEST
    latest = nlargest(listed, found.progress, key=lambda p: (p.last_seen_at, p.number))
    return render(
        request,
        "results.html",
        sheet=drawn,
        shown=latest,
        comments=comments,
        written=written,
        versions=versions,
        kinds=kinds,
        picture="/stimuli/{}.png".format,
        link=lambda image: f"/results/{selected.slug}/images/{image.sha256}?{query(found)}",
        query=query(found),
        **WORDING,
    )


@researcher.post("/results/{slug}/unmask")
def unmask(selected: Selected, db: Db, memory: Mem) -> Response:
    """Show the comparisons before the target N; when, and at how many participants, is kept for ever."""
    with db.read() as session:
        found = results.compute(session, *select_study(session, selected), memory, now())
    record(db, found, unmask=True)
    return RedirectResponse(f"/results/{selected.slug}?{query(found)}", status_code=303)


router.include_router(researcher)
