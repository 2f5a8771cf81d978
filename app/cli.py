"""`python -m app`: serve, import-pack, password, signin-link, audit, simulate, power, export, report,
backup, restore, erase."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from sqlalchemy.exc import SQLAlchemyError

from app import (
    access_command,
    backup,
    erase,
    export_command,
    import_command,
    power_command,
    restore,
    serving,
    simulate_command,
)
from app.simulate import SimulationError

MOST_WORKERS = (
    64  # more than this are a slip: each needs its own memory, and its share of the database's connections
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2: bad input, said in one line on stderr)."""
    args = _parser().parse_args(arguments)
    try:
        status: int = args.run(args)
    except (ValueError, SimulationError) as error:
        return _fail(str(error))
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        return _fail(f"the database cannot be used: {reason.splitlines()[0]} (DATABASE_URL says which it is)")
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        return 130
    return status


def _fail(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as the rest of the program does."""

    def error(self, message: str) -> NoReturn:
        sys.exit(_fail(f"{message} (see {self.prog} --help)"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m app", description="Run a study of adversarial images.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="serve the studies of studies/ with the packs of stimuli/")
    serve.add_argument("--host", default=os.environ.get("HOST") or "127.0.0.1")
    serve.add_argument("--port", type=_port, default=os.environ.get("PORT") or 8000)
    serve.add_argument(
        "--workers",
        type=_workers,
        default=os.environ.get("WORKERS") or 1,
        metavar="N",
        help="server processes (default: WORKERS, else 1)",
    )
    serve.set_defaults(run=serving.serve)

    load = commands.add_parser("import-pack", help="check a stimulus pack and store it in the database")
    import_command.add_arguments(load)
    load.set_defaults(run=import_command.run)

    password = commands.add_parser("password", help="set the researcher's password; ends all sessions")
    access_command.add_password_arguments(password)
    password.set_defaults(run=access_command.set_password)

    link = commands.add_parser("signin-link", help="print a link that signs the researcher in, once")
    access_command.add_link_arguments(link, _port)
    link.set_defaults(run=access_command.signin_link)

    log = commands.add_parser("audit", help="print who signed in, downloaded, unmasked or deleted, and when")
    access_command.add_audit_arguments(log)
    log.set_defaults(run=access_command.print_audit)

    play = commands.add_parser(
        "simulate", help="play participants over HTTP, with given rates, as a rehearsal"
    )
    simulate_command.add_arguments(play, _model_rate)
    play.set_defaults(run=simulate_command.run)

    plan = commands.add_parser("power", help="how many participants a study needs, by simulating it")
    power_command.add_arguments(plan, _model_rate)
    plan.set_defaults(run=power_command.run)

    export = commands.add_parser(
        "export", help="write a study's results.json, responses.csv and all of export.zip into a folder"
    )
    export_command.add_export_arguments(export)
    export.set_defaults(run=export_command.export)

    report = commands.add_parser("report", help="write the report on a study, one self-contained HTML file")
    export_command.add_report_arguments(report)
    report.set_defaults(run=export_command.report)

    keep = commands.add_parser("backup", help="write all of the database to one file, while the server runs")
    backup.add_arguments(keep)
    keep.set_defaults(run=backup.run)

    bring_back = commands.add_parser("restore", help="fill an empty database with what `backup` wrote")
    restore.add_arguments(bring_back)
    bring_back.set_defaults(run=restore.run)

    forget = commands.add_parser(
        "erase", help="delete personal data: by age, of one participant, or of a study"
    )
    erase.add_arguments(forget)
    forget.set_defaults(run=erase.run)
    return parser


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number from 0 to 65535")
    return int(text)


def _workers(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_WORKERS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of server processes: a number from 1 to {MOST_WORKERS}"
        )
    return int(text)


def _model_rate(text: str) -> tuple[str, float]:
    model, equals, rate = text.partition("=")
    try:
        if not (model and equals and 0 <= float(rate) <= 1):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODEL=RATE with a rate from 0 to 1") from None
    return model, float(rate)
