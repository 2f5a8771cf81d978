"""Stimulus packs into the database."""

import enum
import io
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import PIL.Image
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from app.models import CleanImage, Image, Pack, Stimulus
from ml import pack as pack_format
from ml.pack import PackError

_IMAGES_AT_ONCE = 200  # in memory


class Imported(enum.Enum):
    """What an import did."""

    NEW = "imported"
    BACK = "already here, and from now on again the pack of its name"
    KNOWN = "already here, nothing changed"


def read_folder(folder: Path) -> tuple[list[pack_format.Pack], list[PackError]]:
    """The packs in a folder of packs, in the order of their folders' names, and why others are none.

    A name stands for one content: of several the first is taken.
    """
    packs: dict[str, pack_format.Pack] = {}
    refused: list[PackError] = []
    for manifest in sorted(folder.glob("*/manifest.json")):
        try:
            pack = pack_format.read_untrusted(manifest.parent)
            first = packs.setdefault(pack.name, pack)
            if first.pack_sha256 != pack.pack_sha256:
                raise PackError(
                    f"{manifest}: the pack in {first.directory} has the name {pack.name!r} too; "
                    "remove or rename one of them"
                )
        except PackError as error:
            refused.append(error)
    return list(packs.values()), refused


def import_pack(session: Session, source: pack_format.Pack, now: datetime) -> tuple[Pack, Imported]:
    """Store a pack that `read_untrusted` gave, whole; the caller commits. Returns its row and what was done.

    The session is one of `Database.preparing`, as of two imports at a time both could find an image missing. The
    same content again changes nothing, but that of packs of one name the latest to come is the one in use.
    Raises PackError where an image is no longer the one that was checked; the caller must not commit then.
    """
    newest = session.scalars(
        select(Pack)
        .where(Pack.name == source.name)
        .order_by(Pack.imported_at.desc(), Pack.id.desc())
        .limit(1)
    ).first()
    if newest is not None and newest.sha256 == source.pack_sha256:
        return newest, Imported.KNOWN
    if newest is not None:  # the clock may have been set back
        now = max(now, newest.imported_at + timedelta(microseconds=1))
    known = session.scalar(select(Pack).where(Pack.sha256 == source.pack_sha256))
    if known is not None:
        known.imported_at = now
        return known, Imported.BACK
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
    for images in _batches(source, sorted(hashes)):
        session.execute(insert(Image), images)
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
    return row, Imported.NEW


def _batches(source: pack_format.Pack, hashes: list[str]) -> Iterator[list[dict[str, Any]]]:
    """The rows of images."""
    for start in range(0, len(hashes), _IMAGES_AT_ONCE):
        yield [_image(source, sha256) for sha256 in hashes[start : start + _IMAGES_AT_ONCE]]


def _image(source: pack_format.Pack, sha256: str) -> dict[str, Any]:
    png = source.image(sha256)
    with PIL.Image.open(io.BytesIO(png)) as image:
        width, height = image.size
    return {"sha256": sha256, "png": png, "width": width, "height": height}
