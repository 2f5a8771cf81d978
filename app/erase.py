"""`erase`: personal data deleted by command: what identifies people, by age; one participant; a study's all.

Without --yes it only says what it would delete. Answers stay, and so does every number, except where participants
are deleted themselves. Backups made before still hold everything.
"""

import argparse
import secrets
import sys
import time
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Select, delete, func, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app import audit, settings
from app.db import Database, migrated
from app.enrollment import drawn, queue
from app.models import Base, Comment, Participant, RecruiterId, Study
from app.withdrawal import PERSONAL, about, stored_about, withdraw

NAMES = {"responses": "labels", "trials": "images"}  # as participants are told, of tables called otherwise
UNLINKED = "erased-"  # begins the token of a session whose link leads nowhere any more
SCRUB_WITHIN_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to delete")
    what.add_argument("--recruiter-ids", action="store_true", help="the ids from recruiters' links")
    what.add_argument("--comments", action="store_true", help="what participants wrote")
    what.add_argument(
        "--anonymize",
        action="store_true",
        help="both, and what only the participant has: the link, the private code, the completion code",
    )
    what.add_argument("--participant", metavar="P-XXXXXXXX", help="all of one participant, as they asked for")
    what.add_argument("--all", action="store_true", help="all participants of --study, which must be closed")
    parser.add_argument("--study", help="of this study alone, all its versions")
    parser.add_argument(
        "--older-than", type=_days, metavar="DAYS", help="of sessions finished or left that long ago"
    )
    parser.add_argument("--yes", action="store_true", help="do it; else it is only said what would be done")


def _days(given: str) -> int:
    if not given.isascii() or not given.isdigit() or len(given) > 5:
        raise argparse.ArgumentTypeError(f"{given!r} is not a number of days")
    if not int(given):
        raise argparse.ArgumentTypeError("1 day is the least: whoever was here today may be taking part")
    return int(given)


def run(args: argparse.Namespace) -> int:
    by_age = args.recruiter_ids or args.comments or args.anonymize
    if sum(map(bool, (by_age, args.participant, args.all))) != 1:
        raise ValueError(
            "say what to delete: --recruiter-ids, --comments, --anonymize; or --participant; or --all"
        )
    if by_age and args.older_than is None:
        raise ValueError("--older-than DAYS is needed: the ids of those who are taking part bring them back")
    if not by_age and args.older_than is not None:
        raise ValueError("--older-than goes with --recruiter-ids, --comments and --anonymize only")
    if args.all and not args.study:
        raise ValueError("--all needs --study")
    with migrated(settings.load().database_url) as database:
        now = datetime.now(UTC)
        with database.write() as session:
            if args.study and session.scalar(select(Study.id).where(Study.slug == args.study)) is None:
                raise ValueError(f"there is no study {args.study!r} in this database")
            if args.participant:
                counts = _participant(session, args.participant, args.study, args.yes, now)
            elif args.all:
                counts = _study(session, args.study, args.yes)
            else:
                counts = _old(session, args, now - timedelta(days=args.older_than))
            if args.yes and sum(counts.values()):
                what = "participant" if args.participant else "study" if args.all else "by age"
                detail = {"what": what} | counts
                audit.record(session, audit.Event.ERASED, study=args.study, detail=detail, now=now)
                session.commit()
        said = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
        print(f"{'deleted' if args.yes else 'would delete'}: {said}")
        if not args.yes:
            print("nothing was changed; --yes does it")
        elif sum(counts.values()):
            scrub(database)
    return 0


def _old(session: Session, args: argparse.Namespace, before: datetime) -> dict[str, int]:
    """Delete what identifies people in sessions that nobody has been at since `before`; the caller commits."""
    people = select(Participant.id).where(Participant.last_seen_at < before, *_of(args.study))
    if args.yes:
        _hold(session, people)
    counts: dict[str, int] = {}
    if args.recruiter_ids or args.anonymize:
        which = RecruiterId.participant_id.in_(people)
        counts["recruiter_ids"] = _delete(session, RecruiterId, which, args.yes)
    if args.comments or args.anonymize:
        counts["comments"] = _delete(session, Comment, Comment.participant_id.in_(people), args.yes)
    if args.anonymize:
        left = session.scalars(people.where(Participant.token.not_like(f"{UNLINKED}%"))).all()
        counts["links_and_codes"] = len(left)
        for person in left if args.yes else ():
            session.execute(
                update(Participant)
                .where(Participant.id == person)
                .values(
                    token=UNLINKED + secrets.token_urlsafe(24),
                    withdrawal_code="-".join(drawn(4) for _ in range(3)),
                    request_id=None,
                    completion_code=None,
                )
            )
    return counts


def _participant(
    session: Session, pseudonym: str, slug: str | None, really: bool, now: datetime
) -> dict[str, int]:
    """What the participant themselves could do by their link."""
    found = session.scalars(select(Participant).where(Participant.pseudonym == pseudonym, *_of(slug))).all()
    if not found:
        raise ValueError(f"there is no participant {pseudonym!r}; the export names them, as P- and 8 letters")
    if len(found) > 1:
        raise ValueError(f"several studies have a participant {pseudonym!r}: say which with --study")
    counts = stored_about(session, found[0])
    if really:
        withdraw(session, found[0].token, now)
    return counts


def _study(session: Session, slug: str, really: bool) -> dict[str, int]:
    """Delete every participant of a study that is over; its definition and what was seen of it stay."""
    if really:
        queue(session, slug)  # nobody begins, nor is the study opened again, until this is over
    if session.scalar(select(Study.id).where(Study.slug == slug, Study.open)) is not None:
        raise ValueError(
            f"the study {slug!r} is open: take its file out of the studies and start the server anew"
        )
    people = select(Participant.id).where(*_of(slug))
    if really:
        _hold(session, people)
    counts = {
        NAMES.get(table.__tablename__, table.__tablename__): _delete(
            session, table, about(table, people), really
        )
        for table in PERSONAL
    }
    return counts | {"participants": _delete(session, Participant, Participant.id.in_(people), really)}


def _hold(session: Session, people: Select[int]) -> None:
    """Wait for these participants' answers that are under way, and keep others out until the transaction ends.

    On PostgreSQL; SQLite has one writer at a time. Who is no longer as `people` asks by then is left out.
    """
    session.execute(people.order_by(Participant.id).with_for_update()).all()


def _of(slug: str | None) -> list[ColumnElement[bool]]:
    versions: Select[int] = select(Study.id).where(Study.slug == slug)
    return [Participant.study_id.in_(versions)] if slug else []


def _delete(
    session: Session,
    table: type[Base],
    which: ColumnElement[bool],
    really: bool,
) -> int:
    count = session.scalar(select(func.count()).select_from(table).where(which)) or 0
    if really:
        session.execute(delete(table).where(which).execution_options(synchronize_session=False))
    return count


def scrub(database: Database) -> None:
    """What was deleted is in no file of the database any more; else it is said what is left to do."""
    if database.engine.dialect.name == "sqlite":
        until = time.monotonic() + SCRUB_WITHIN_S
        while not database.emptied_log():
            if time.monotonic() > until:
                print(
                    "what was deleted is still in the database's log, which others are reading; it goes with the "
                    "server's next restart",
                    file=sys.stderr,
                )
                return
            time.sleep(0.2)
        return
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(
            text("SET statement_timeout = 0")
        )  # a large table takes longer than a participant waits
        for table in (Participant, *PERSONAL):
            name = table.__tablename__
            try:
                # Written anew, while others wait: PostgreSQL would else keep the rows until it needs their place.
                connection.execute(text(f"VACUUM (FULL) {name}"))
            except OperationalError:
                print(f"{name} is in use: run VACUUM (FULL) {name} when nobody takes part", file=sys.stderr)
