"""The researcher's pages about single images: what each shows, what the network said, what people said."""

from dataclasses import dataclass

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import auth, showing
from app.models import CleanImage, Pack, Stimulus, StudyPack
from app.participation import Refusal
from app.results import Results
from app.showing import Mem, Selected
from app.views import ImageResult
from app.web import Db, render

router = APIRouter(dependencies=[Depends(auth.require_researcher)], include_in_schema=False)


@dataclass(frozen=True)
class ImagePage:
    """One stimulus with its origin, its fellows made from the same pair for the other models, and its answers."""

    pack: str
    stimulus: Stimulus
    original: CleanImage | None
    fellows: list[Stimulus]
    answers: ImageResult | None  # None: nobody has labeled it, or the study is masked


@router.get("/results/{slug}/images", response_class=HTMLResponse)
def images(request: Request, selected: Selected, db: Db, memory: Mem) -> Response:
    """Every image that was labeled, the most convincing first."""
    with db.read() as session:
        found = showing.shown(session, db, *showing.select_study(session, selected), memory)
    packs = {
        name: sorted(pack.views.images, key=lambda i: (-i.low, -i.reasonable, i.sha256))
        for name, pack in found.packs.items()
        if pack.views
    }
    return render(
        request,
        "images.html",
        results=found,
        packs=packs,
        query=showing.query(found),
        **showing.WORDING,
    )


@router.get("/results/{slug}/images/{sha256}", response_class=HTMLResponse)
def image(request: Request, selected: Selected, sha256: str, db: Db, memory: Mem) -> Response:
    """One image; where several stimuli have the same pixels, all of them."""
    with db.read() as session:
        found = showing.shown(session, db, *showing.select_study(session, selected), memory)
        pages = [_page(session, found, stimulus) for stimulus in _stimuli(session, found, sha256)]
    if not pages:
        raise Refusal(404, "This study shows no such image.")
    return render(
        request, "image.html", results=found, pages=pages, query=showing.query(found), **showing.WORDING
    )


def _stimuli(session: Session, found: Results, sha256: str) -> list[Stimulus]:
    return list(
        session.scalars(
            select(Stimulus)
            .join(StudyPack, StudyPack.pack_id == Stimulus.pack_id)
            .where(StudyPack.study_id == found.study.id, Stimulus.sha256 == sha256)
            .order_by(StudyPack.position, Stimulus.id)
        )
    )


def _page(session: Session, found: Results, stimulus: Stimulus) -> ImagePage:
    name = session.scalars(select(Pack.name).where(Pack.id == stimulus.pack_id)).one()
    views = found.packs[name].views
    fellows = session.scalars(
        select(Stimulus)
        .where(
            Stimulus.pack_id == stimulus.pack_id,
            Stimulus.source_index == stimulus.source_index,
            Stimulus.target_label == stimulus.target_label,
            Stimulus.id != stimulus.id,
        )
        .order_by(Stimulus.id)
    )
    original = select(CleanImage).where(
        CleanImage.pack_id == stimulus.pack_id, CleanImage.source_index == stimulus.source_index
    )
    answers = [
        image
        for image in (views.images if views else [])
        if (image.sha256, image.model, image.source_index, image.target_label)
        == (stimulus.sha256, stimulus.model, stimulus.source_index, stimulus.target_label)
    ]
    return ImagePage(name, stimulus, session.scalar(original), list(fellows), answers[0] if answers else None)
