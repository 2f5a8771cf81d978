"""Stimulus packs into the database."""

import io
from datetime import datetime

import PIL.Image
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from app.models import CleanImage, Image, Pack, Stimulus
from ml import pack as pack_format


def import_pack(session: Session, source: pack_format.Pack, now: datetime) -> tuple[Pack, bool]:
    """Store a verified pack, whole; the caller commits. Returns its row and whether it is new.

    The same content again changes nothing, but that of packs of one name the latest to come is the one in use.
    """
    known = session.scalar(select(Pack).where(Pack.sha256 == source.pack_sha256))
    if known is not None:
        newest = session.scalar(select(func.max(Pack.imported_at)).where(Pack.name == known.name))
        if newest is not None and known.imported_at < newest:
            known.imported_at = now  # it came back: from now on it is what its name means
        return known, False
    row = Pack(
        name=source.name,
        sha256=source.pack_sha256,
        manifest=source.manifest,
        labels=list(source.labels),
        models=list(source.models),
        grids=dict(source.grids),
        imported_at=now,
    )
    session.add(row)
    session.flush()
    hashes = {item.sha256 for item in source.stimuli} | set(source.grids.values())
    hashes |= {item.sha256 for item in (*source.originals, *source.clean)}
    hashes -= set(session.scalars(select(Image.sha256)))  # a picture that two packs share is stored once
    if hashes:
        session.execute(insert(Image), [_image(source, sha256) for sha256 in sorted(hashes)])
    session.execute(
        insert(Stimulus),
        [
            {
                "pack_id": row.id,
                "sha256": item.sha256,
                "model": item.model,
                "source_index": item.source_index,
                "source_label": item.source_label,
                "target_label": item.target_label,
                "prediction": item.prediction,
                "target_probability": item.target_probability,
                "iterations": item.iterations,
                "pixels_changed": item.pixels_changed,
                "l2": item.l2,
                "linf": item.linf,
            }
            for item in source.stimuli
        ],
    )
    clean = [(item, "original") for item in source.originals] + [(item, "clean") for item in source.clean]
    if clean:
        session.execute(
            insert(CleanImage),
            [
                {
                    "pack_id": row.id,
                    "sha256": item.sha256,
                    "source_index": item.source_index,
                    "source_label": item.source_label,
                    "role": role,
                }
                for item, role in clean
            ],
        )
    return row, True


def _image(source: pack_format.Pack, sha256: str) -> dict[str, object]:
    png = source.image(sha256)
    with PIL.Image.open(io.BytesIO(png)) as image:
        width, height = image.size
    return {"sha256": sha256, "png": png, "width": width, "height": height}
