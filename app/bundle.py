"""The whole export of a study: data, what they mean, what was shown, results, and scripts that recompute them."""

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from sqlalchemy.orm import Session

from app import codebook, progress, tables
from app.results import Results
from app.results_json import results_json
from app.settings import ROOT

SCRIPTS = ("recompute.py", "recompute_answers.py", "recompute_methods.py", "recompute.R")
Write = Callable[[str, Iterable[str]], None]


def write_folder(
    folder: Path, session: Session, found: Results, *, comments: bool = False, recruiter_ids: bool = False
) -> None:
    """Write the export into a folder; files of other names that are there stay."""

    def write(path: str, pieces: Iterable[str]) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (folder / path).open("w", newline="", encoding="utf-8") as file:
            file.writelines(pieces)

    _write_all(write, session, found, comments, recruiter_ids)


def write_zip(
    file: IO[bytes], session: Session, found: Results, *, comments: bool = False, recruiter_ids: bool = False
) -> None:
    """Write the export as a zip; the same data at the same instant give the same bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:

        def write(path: str, pieces: Iterable[str]) -> None:
            info = zipfile.ZipInfo(path, found.summary.at.timetuple()[:6])
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as entry:
                for piece in pieces:
                    entry.write(piece.encode())

        _write_all(write, session, found, comments, recruiter_ids)


def zipped(session: Session, found: Results, *, comments: bool, recruiter_ids: bool) -> IO[bytes]:
    """The export as a zip in a temporary file, at its beginning; closing it removes it."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed by whoever has sent it)
    try:
        write_zip(file, session, found, comments=comments, recruiter_ids=recruiter_ids)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def file_name(found: Results) -> str:
    return f"{found.study.slug}-{found.study.version}-{found.data}.zip"


def _write_all(write: Write, session: Session, found: Results, comments: bool, recruiter_ids: bool) -> None:
    sums: list[str] = []
    for path, pieces in _files(session, found, comments, recruiter_ids):
        digest = hashlib.sha256()
        write(path, _hashed(pieces, digest.update))
        sums.append(f"{digest.hexdigest()}  {path}\n")
    write("SHA256SUMS", sums)


def _hashed(pieces: Iterable[str], update: Callable[[bytes], None]) -> Iterator[str]:
    for piece in pieces:
        update(piece.encode())
        yield piece


def _files(
    session: Session, found: Results, comments: bool, recruiter_ids: bool
) -> Iterator[tuple[str, Iterable[str]]]:
    """Every file but the checksums, in order; one session reads all, so that they are of one instant."""
    study = found.study
    excluded = progress.excluded_pseudonyms(found.progress)
    data: dict[str, Iterable[str]] = {
        "responses": tables.responses_csv(session, study, found.data, excluded),
        "participants": tables.lines("participants", tables.participants(session, found)),
        "trials": tables.lines("trials", tables.trials(session, found)),
        "stimuli": tables.lines("stimuli", tables.stimuli(session, found)),
    }
    if comments:
        data["comments"] = tables.lines("comments", tables.comments(session, found))
    if recruiter_ids:
        data["recruiterids"] = tables.lines("recruiterids", tables.recruiter_ids(session, found))
    names = list(data)
    numbers = results_json(found)
    yield "README.md", [_readme(found, names)]
    yield "codebook.md", codebook.codebook(found, names)
    yield "dataset_description.json", [codebook.dataset_description(found, found.definition, names)]
    yield (
        ".psychds-ignore",
        ["\n".join(("codebook.md", "study/", "packs/", "results.*", "recompute*", "SHA256SUMS", ""))],
    )
    for name, pieces in data.items():
        yield codebook.file_name(study.slug, name), pieces
    yield "results.json", [json.dumps(numbers, indent=1), "\n"]
    yield "results.csv", tables.results_csv(numbers)
    yield "study/study.json", [json.dumps(_study(found, numbers), indent=1, ensure_ascii=False), "\n"]
    # As `definition.freeze` hashes it.
    frozen = json.dumps(study.definition, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    yield "study/frozen.json", [frozen]
    for link in study.packs:
        manifest = json.dumps(link.pack.manifest, sort_keys=True, indent=1, ensure_ascii=False)
        yield f"packs/{link.pack.name}/manifest.json", [manifest, "\n"]
    for name in SCRIPTS:
        yield name, [(ROOT / "app" / "analysis" / name).read_text(encoding="utf-8")]


def _study(found: Results, numbers: Mapping[str, object]) -> dict[str, object]:
    """What the scripts need to know that is no answer of anybody's."""
    return {key: numbers[key] for key in ("study", "version", "data", "computed_at", "unmasked")} | {
        "sha256": found.study.sha256,
        "seen": not found.masked,
        "packs": list(found.packs),
        "labels": found.labels,
        "models": list(next(iter(found.packs.values())).models),
        "definition": found.definition.model_dump(mode="json"),
    }


def _readme(found: Results, names: list[str]) -> str:
    text = (ROOT / "app" / "analysis" / "README.md").read_text(encoding="utf-8")
    files = "".join(
        f"- `{codebook.file_name(found.study.slug, name)}`: {codebook.TABLES[name].title}.\n"
        for name in names
    )
    return (
        text.replace("{title}", found.definition.title)
        .replace("{study}", found.study.slug)
        .replace("{version}", found.study.version)
        .replace("{data}", found.data)
        .replace("{at}", found.summary.at.isoformat())
        .replace("{files}", files)
    )
