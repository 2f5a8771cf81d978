"""`password`, `signin-link` and `audit`: who may see results, and what they did."""

import argparse
import getpass
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime

from app import audit, auth, password, settings
from app.audit import Event
from app.db import migrated


def add_password_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stdin", action="store_true", help="read it from the first line of standard input")


def add_link_arguments(parser: argparse.ArgumentParser, port: Callable[[str], int]) -> None:
    parser.add_argument(
        "--port",
        type=port,
        default=os.environ.get("PORT") or 8000,
        help="of the server, where PUBLIC_URL does not say it; default: PORT, or 8000",
    )


def add_audit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--since", type=_instant, metavar="TIME", help="in UTC: 2026-01-31 or 2026-01-31T14:30; default: all"
    )


def _instant(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time such as 2026-01-31 or 2026-01-31T14:30"
        ) from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def set_password(args: argparse.Namespace) -> int:
    with migrated(settings.load().database_url) as database:
        typed = _from_stdin() if args.stdin else _typed_twice()
        with database.write() as session:
            password.change(session, typed, datetime.now(UTC))
            session.commit()
    print("The password is set; whoever was signed in has to sign in again.")
    return 0


def _from_stdin() -> str:
    return sys.stdin.readline().removesuffix("\n").removesuffix("\r")


def _typed_twice() -> str:
    """Asked for without being shown. Raises ValueError where that cannot be, or where the second differs."""
    if not sys.stdin.isatty():
        raise ValueError("there is no terminal to ask for the password at: give it by --stdin")
    first = getpass.getpass("New password: ")
    if (wrong := password.weakness(first)) is not None:
        raise ValueError(wrong)
    if getpass.getpass("Once more: ") != first:
        raise ValueError("the two differ; nothing was changed")
    return first


def signin_link(args: argparse.Namespace) -> int:
    config = settings.load()
    with migrated(config.database_url) as database, database.write() as session:
        now = datetime.now(UTC)
        token = auth.new_link(session, config.secret, now)
        audit.record(session, Event.LINK_MADE, now=now)
        session.commit()
    base = config.public_url or f"http://127.0.0.1:{args.port}"
    print(f"{base}/signin?link={token}")
    minutes = int(auth.LINK_FOR.total_seconds() // 60)
    print(f"It signs in once, within {minutes} minutes; whoever has it can.", file=sys.stderr)
    return 0


def print_audit(args: argparse.Namespace) -> int:
    """Every entry, the earliest first, its parts separated by tabs."""
    with migrated(settings.load().database_url) as database, database.read() as session:
        for entry in reversed(audit.entries(session, since=args.since)):
            at = entry.at.strftime("%Y-%m-%dT%H:%M:%SZ")
            print(at, entry.event, entry.study or "-", audit.in_words(entry) or "-", sep="\t")
    return 0
