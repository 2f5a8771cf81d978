"""The researcher's pages and downloads."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app import auth, results
from app import definition as definitions
from app.definition import Definition
from app.export import responses_csv, results_json
from app.figures import rates_figure
from app.models import Participant, Study, Unmasking
from app.pages import render
from app.participation import Refusal
from app.results import Data, Results
from app.study import Db, now

router = APIRouter()
researcher = APIRouter(dependencies=[Depends(auth.require_researcher)])

FIGURE_OUTCOMES = {
    "human_fooled": "Human fooled",
    "mistake_reasonable": "Mistake reasonable",
    "mistake_reasonable_direct": "Judged reasonable when asked",
}
OUTCOME_NAMES = {
    "human_fooled": "human fooled",
    "mistake_reasonable": "mistake reasonable",
    "mistake_reasonable_direct": "judged reasonable when asked",
    "target_first": "target named first",
    "target_second": "target named second",
    "none_plausible": "none plausible",
    "kept_source": "source label kept",
    "placebo_reasonable": "placebo (chance level)",
}


@dataclass(frozen=True)
class StudyRow:
    slug: str
    definition: Definition
    started: int
    finished: int


@dataclass(frozen=True)
class Which:
    """Which version and which participants a page is about."""

    slug: str
    version: str | None
    data: Data | None


def which(
    slug: str,
    version: Annotated[str | None, Query(pattern="^[0-9a-f]{12}$")] = None,
    data: Annotated[Data | None, Query()] = None,
) -> Which:
    return Which(slug, version, data)


Selected = Annotated[Which, Depends(which)]


@router.get("/signin", include_in_schema=False)
def sign_in(request: Request, key: str = "") -> Response:
    secret = request.app.state.settings.secret
    if not auth.is_sign_in_key(secret, key):
        raise Refusal(
            401, "This sign-in link is not valid here; open the Dashboard link that the server printed."
        )
    response = RedirectResponse("/results", status_code=303)
    response.set_cookie(
        auth.COOKIE,
        auth.cookie(secret),
        max_age=auth.SIGNED_IN_FOR_S,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )
    return response


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
            started, finished = session.execute(
                select(func.count(), func.count(Participant.finished_at)).where(
                    Participant.study_id == study.id, Participant.simulated.is_(False)
                )
            ).one()
            rows.append(StudyRow(slug, definitions.of(study), started, finished))
    return render(request, "overview.html", studies=rows)


@researcher.get("/results/{slug}.json")
def as_json(selected: Selected, db: Db) -> dict[str, Any]:
    with db.read() as session:
        return results_json(_results(session, selected))


@researcher.get("/results/{slug}", response_class=HTMLResponse, include_in_schema=False)
def dashboard(request: Request, selected: Selected, db: Db) -> Response:
    with db.read() as session:
        found = _results(session, selected)
        versions = session.scalars(
            select(Study)
            .where(Study.slug == selected.slug)
            .order_by(Study.activated_at.desc(), Study.id.desc())
        ).all()
        kinds = session.scalars(
            select(Participant.simulated).where(Participant.study_id == found.study.id).distinct()
        ).all()
    figures = {
        name: rates_figure(
            pack.models, _figure_outcomes(found.definition), f"Rates per model with 95 % intervals, {name}"
        )
        for name, pack in found.packs.items()
    }
    return render(
        request,
        "results.html",
        results=found,
        versions=versions,
        both_kinds=len(kinds) == 2,
        figures=figures,
        outcomes=OUTCOME_NAMES,
        now=now(),
    )


@researcher.get("/results/{slug}/responses.csv")
def as_csv(request: Request, selected: Selected, db: Db) -> Response:
    with db.read() as session:
        found = _results(session, selected)
    excluded = frozenset(p.pseudonym for p in found.progress if p.excluded)

    def lines() -> Iterator[str]:
        with db.read() as session:
            yield from responses_csv(session, found.study, found.data, excluded)

    name = f"{found.study.slug}-{found.study.version}-{found.data}.csv"
    return StreamingResponse(
        lines(),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
    )


@researcher.post("/results/{slug}/unmask")
def unmask(selected: Selected, db: Db) -> Response:
    """Show the comparisons before the target N; when, and at how many participants, is kept for ever."""
    with db.write() as session:
        found = _results(session, selected)
        if found.masked:
            session.add(
                Unmasking(
                    study_id=found.study.id, simulated=found.data == "simulated", at=now(), n=found.included
                )
            )
            session.commit()
    return RedirectResponse(
        f"/results/{selected.slug}?version={found.study.version}&data={found.data}", status_code=303
    )


def _results(session: Session, selected: Which) -> Results:
    if selected.version:
        study = session.scalar(
            select(Study).where(Study.slug == selected.slug, Study.sha256.startswith(selected.version))
        )
    else:
        study = definitions.active(session, selected.slug)
    if study is None:
        raise Refusal(404, f"There is no such study or version here: {selected.slug!r}.")
    return results.compute(session, study, selected.data or results.default_data(session, study))


def _figure_outcomes(definition: Definition) -> dict[str, str]:
    asked = "plausibility" in definition.questions
    return {k: v for k, v in FIGURE_OUTCOMES.items() if asked or k != "mistake_reasonable_direct"}


router.include_router(researcher)
