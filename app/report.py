"""The report: one self-contained HTML file with results, methods, versions and hashes, which prints to PDF."""

import base64
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import jinja2
from fastapi import APIRouter, Depends
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import auth, results, showing
from app.audit import Event, record_download
from app.models import Image, Pack, StudyPack
from app.results import Results
from app.settings import ROOT
from app.sheet import Sheet, sheet
from app.showing import Mem, Selected
from app.web import Db, now

router = APIRouter(dependencies=[Depends(auth.require_researcher)])

LIBRARIES = ("numpy", "scipy", "SQLAlchemy")


@dataclass(frozen=True)
class Provenance:
    """What made the numbers: versions of the program, and hashes of what was shown."""

    program: str
    python: str
    libraries: dict[str, str]
    packs: list[dict[str, Any]]  # the manifests, without their stimuli


@router.get("/results/{slug}/report.html")
def report(selected: Selected, db: Db, memory: Mem, comments: bool = False) -> Response:
    """The report as a file; with participants' comments only on request."""
    with db.read() as session:
        found = showing.shown(session, db, *showing.select_study(session, selected), memory)
        record_download(db, Event.REPORTED, found.study, found.data, "report.html", now(), comments=comments)
        html = render_report(session, found, comments)
    name = f"{found.study.slug}-{found.study.version}-{found.data}.html"
    return Response(
        html,
        media_type="text/html; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"},
    )


def render_report(session: Session, found: Results, comments: bool = False) -> str:
    """The report's HTML; it refers to nothing outside itself."""
    drawn = sheet(session, found)
    images = _images(session, drawn)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    picture: Callable[[str], str] = images.__getitem__
    return environment.get_template("report.html").render(
        sheet=drawn,
        provenance=_provenance(session, found),
        style=(ROOT / "static" / "style.css").read_text(encoding="utf-8"),
        picture=picture,
        link=None,
        report=True,
        query=showing.query(found),
        comments=results.comments(session, found)[0] if comments else [],
        **showing.WORDING,
    )


def _images(session: Session, drawn: Sheet) -> dict[str, str]:
    """sha256 -> the PNG as a data URI, of the images that the report shows."""
    wanted = {i.sha256 for pack in drawn.packs for i in (*pack.convincing, *pack.unconvincing)}
    rows = session.execute(select(Image.sha256, Image.png).where(Image.sha256.in_(sorted(wanted))))
    return {sha256: f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}" for sha256, png in rows}


def _provenance(session: Session, found: Results) -> Provenance:
    manifests = session.scalars(
        select(Pack.manifest)
        .join(StudyPack, StudyPack.pack_id == Pack.id)
        .where(StudyPack.study_id == found.study.id)
        .order_by(StudyPack.position)
    )
    return Provenance(
        program=version("reasonable-mistakes"),
        python=platform.python_version(),
        libraries={name: version(name) for name in LIBRARIES},
        packs=[dict(manifest) for manifest in manifests],
    )
