"""`export` and `report`: a study's results as files."""

import argparse
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.orm import Session

from app import bundle, progress, results, settings, tables
from app.audit import Event, record_download
from app.db import Database, migrated
from app.participation import Refusal
from app.results_json import results_json


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    _add_arguments(parser, "DIR")
    parser.add_argument("--zip", action="store_true", help="write export.zip into DIR instead of its files")
    parser.add_argument("--comments", action="store_true", help="with participants' comments")
    parser.add_argument("--recruiter-ids", action="store_true", help="with the ids from recruiters' links")


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    _add_arguments(parser, "FILE")
    parser.add_argument("--comments", action="store_true", help="with what participants wrote")


def _add_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Which results, and where to."""
    parser.add_argument("--study", default="mnist")
    parser.add_argument("--out", type=Path, required=True, metavar=out)
    parser.add_argument(
        "--version", type=_version, help="12 digits; default: the one that takes participants"
    )
    parser.add_argument("--data", choices=("real", "simulated"), help="default: as the dashboard shows")


def _version(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{12}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a version: the 12 digits that the dashboard shows")
    return text


@contextmanager
def _results(args: argparse.Namespace) -> Iterator[tuple[Database, Session, results.Results]]:
    """The results of --study, --version and --data as of now, with the session that read them and its database."""
    from app import showing

    with migrated(settings.load().database_url) as database, database.read() as session:
        try:
            study, data = showing.select_study(session, showing.Which(args.study, args.version, args.data))
        except Refusal:
            version = f", version {args.version}," if args.version else ""
            raise ValueError(f"there is no study {args.study!r}{version} in this database") from None
        yield database, session, showing.shown(session, database, study, data)


@contextmanager
def _owners_alone() -> Iterator[None]:
    """New files and folders are their owner's alone, as they are about people; the rights of others stay."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def export(args: argparse.Namespace) -> int:
    with _owners_alone(), _results(args) as (database, session, found):
        more = {"comments": args.comments, "recruiter_ids": args.recruiter_ids}
        what = "export.zip" if args.zip else "folder"
        _put_on_record(database, Event.EXPORTED, found, what, **more)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(results_json(found), indent=1) + "\n")
        excluded = progress.excluded_pseudonyms(found.progress)
        with (args.out / "responses.csv").open("w", newline="", encoding="utf-8") as file:
            file.writelines(tables.responses_csv(session, found.study, found.data, excluded))
        if args.zip:
            with (args.out / "export.zip").open("wb") as archive:
                bundle.write_zip(archive, session, found, **more)
        else:
            bundle.write_folder(args.out, session, found, **more)
    print(
        f"{args.out}: results.json, responses.csv and more of {found.study.slug}, "
        f"{found.responses} responses ({found.data})"
    )
    return 0


def _put_on_record(database: Database, event: Event, found: results.Results, file: str, **more: bool) -> None:
    now = datetime.now(UTC)
    record_download(database, event, found.study, found.data, file, now, by="command", **more)


def report(args: argparse.Namespace) -> int:
    from app.report import render_report  # draws figures, which nothing else here needs

    with _owners_alone(), _results(args) as (database, session, found):
        _put_on_record(database, Event.REPORTED, found, "report.html", comments=args.comments)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(render_report(session, found, args.comments), encoding="utf-8")
    print(f"{args.out}: report on {found.study.slug}, complete participants: {found.included} ({found.data})")
    return 0
