"""`python -m app`: serve, import-pack, simulate, power, export, report."""

import argparse
import json
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NoReturn

import uvicorn
from alembic.util import CommandError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app import auth, bundle, power_command, published, results, settings, tables
from app import definition as definitions
from app.bot import BAD, PAPER_FOOLED, PAPER_REASONABLE, RT_MEDIAN_MS, Crowd, Rates
from app.db import Database
from app.definition import Definition, DefinitionError, MissingPackError, Primary
from app.packs import import_pack
from app.participation import Refusal
from app.population import Spread
from app.results_json import results_json
from app.settings import Settings, SettingsError
from app.simulate import SimulationError, simulate
from ml import pack as pack_format
from ml.pack import Pack, PackError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2: bad input, said in one line on stderr)."""
    args = _parser().parse_args(arguments)
    try:
        status: int = args.run(args)
    except (SettingsError, DefinitionError, PackError, SimulationError, ValueError) as error:
        return _fail(str(error))
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        return _fail(f"the database cannot be used: {reason.splitlines()[0]} (DATABASE_URL says which it is)")
    except CommandError as error:
        return _fail(f"the database's schema is not one of this version: {error}")
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
    serve.set_defaults(run=_serve)

    load = commands.add_parser("import-pack", help="check a stimulus pack and store it in the database")
    load.add_argument("directory", type=Path, metavar="DIR")
    load.set_defaults(run=_import_pack)

    play = commands.add_parser(
        "simulate", help="play participants over HTTP, with given rates, as a rehearsal"
    )
    play.add_argument(
        "--url",
        default=f"http://{os.environ.get('HOST') or '127.0.0.1'}:{os.environ.get('PORT') or 8000}",
        help="the running server (default: %(default)s, from HOST and PORT)",
    )
    play.add_argument("--study", default="mnist", help="the study's name in its URL (default: %(default)s)")
    play.add_argument(
        "--pack",
        type=Path,
        action="append",
        metavar="DIR",
        help="each of the study's packs (default: those that its file names)",
    )
    play.add_argument("--participants", type=int, default=20, metavar="N")
    play.add_argument("--seed", type=int, default=0)
    for name, default in (("fooled", PAPER_FOOLED), ("reasonable", PAPER_REASONABLE)):
        play.add_argument(
            f"--{name}",
            nargs="+",
            type=_model_rate,
            action="extend",
            metavar="MODEL=RATE",
            help="default: the paper's for the pack's data set and attack, where it has none those of MNIST, "
            + " ".join(f"{k}={v}" for k, v in default.items()),
        )
    for field in fields(Spread):
        play.add_argument(
            f"--sd-{field.name.replace('_', '-')}",
            type=float,
            default=0.0,
            metavar="SD",
            help=f"spread of {field.name.replace('_', ' x ')} effects about the rates, in logits (default: 0)",
        )
    play.add_argument(
        "--dropout", type=float, default=0.0, metavar="SHARE", help="who leave at a random point (default: 0)"
    )
    play.add_argument(
        "--bad",
        type=float,
        default=0.0,
        metavar="SHARE",
        help=f"who do not take part in earnest: {', '.join(BAD)} (default: 0)",
    )
    play.add_argument(
        "--rt-median-ms",
        type=float,
        default=RT_MEDIAN_MS,
        metavar="MS",
        help="of labelling an image; judging one is quicker (default: %(default)g)",
    )
    play.set_defaults(run=_simulate)

    plan = commands.add_parser("power", help="how many participants a study needs, by simulating it")
    power_command.add_arguments(plan, _model_rate)
    plan.set_defaults(run=_power)

    export = commands.add_parser(
        "export", help="write a study's results.json, responses.csv and all of export.zip into a folder"
    )
    export.add_argument("--study", default="mnist")
    export.add_argument("--out", type=Path, required=True, metavar="DIR")
    export.add_argument(
        "--version", type=_version, help="12 digits; default: the one that takes participants"
    )
    export.add_argument("--data", choices=("real", "simulated"), help="default: as the dashboard shows")
    export.add_argument("--zip", action="store_true", help="write export.zip into DIR instead of its files")
    export.add_argument("--comments", action="store_true", help="with participants' comments")
    export.add_argument("--recruiter-ids", action="store_true", help="with the ids from recruiters' links")
    export.set_defaults(run=_export)

    report = commands.add_parser("report", help="write the report on a study, one self-contained HTML file")
    report.add_argument("--study", default="mnist")
    report.add_argument("--out", type=Path, required=True, metavar="FILE")
    report.add_argument(
        "--version", type=_version, help="12 digits; default: the one that takes participants"
    )
    report.add_argument("--data", choices=("real", "simulated"), help="default: as the dashboard shows")
    report.add_argument("--comments", action="store_true", help="with what participants wrote")
    report.set_defaults(run=_report)
    return parser


def _version(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{12}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a version: the 12 digits that the dashboard shows")
    return text


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number from 0 to 65535")
    return int(text)


def _model_rate(text: str) -> tuple[str, float]:
    model, equals, rate = text.partition("=")
    try:
        if not (model and equals and 0 <= float(rate) <= 1):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODEL=RATE with a rate from 0 to 1") from None
    return model, float(rate)


def prepare(config: Settings, now: datetime | None = None) -> list[str]:
    """Bring the database up to date: schema, every pack of stimuli/, every study of studies/. Returns the slugs.

    A study whose pack is missing is left out, with a line on stderr: it must not keep others from being served.
    Raises MissingPackError where there are no others.
    """
    now = now or datetime.now(UTC)
    slugs: list[str] = []
    missing: list[MissingPackError] = []
    database = Database(config.database_url)
    try:
        database.migrate()
        with database.write() as session:
            for manifest in sorted(config.stimuli.glob("*/manifest.json")):
                import_pack(session, pack_format.read(manifest.parent), now)
            for path in sorted(config.studies.glob("*.toml")):
                try:
                    slugs.append(definitions.freeze(session, path, now).slug)
                except MissingPackError as error:
                    missing.append(error)
            if missing and not slugs:
                raise missing[0]
            definitions.close_all_but(session, slugs)
            session.commit()
    finally:
        database.close()
    for left_out in missing:
        print(f"not served: {left_out}", file=sys.stderr)
    return slugs


class _AnnouncingServer(uvicorn.Server):
    """Prints where to go once the server listens, not before."""

    def __init__(self, config: uvicorn.Config, lines: list[str]) -> None:
        super().__init__(config)
        self._lines = lines

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets=sockets)  # type: ignore[arg-type]
        if self.started:
            print("\n".join(self._lines), flush=True)


def _serve(args: argparse.Namespace) -> int:
    config = settings.load()
    with _listen(args.host, args.port) as listener:
        slugs = prepare(config)
        if not slugs:
            raise SettingsError(f"there is no study in {config.studies}: put a .toml file there")
        from app.main import create_app

        port = listener.getsockname()[1]
        host = "127.0.0.1" if args.host in ("0.0.0.0", "::") else args.host
        base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        lines = [f"Study: {base}/study/{slug}" for slug in slugs]
        lines.append(f"Dashboard: {base}/signin?key={auth.sign_in_key(config.secret)}")
        # The access log would write participants' links, which are their secrets, into files.
        app = create_app(config)
        server = _AnnouncingServer(uvicorn.Config(app, log_level="warning", access_log=False), lines)
        server.run(sockets=[listener])
    return 0 if server.started else 1


def _listen(host: str, port: int) -> socket.socket:
    """The address is taken before anything else is done, so that a busy port is one clear line."""
    try:
        listener = socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host} port {port}: {error.strerror}; try --port or PORT"
        ) from None
    # Connections inherit it. Asyncio sets it only on sockets that name their protocol, which this one does not;
    # without it a reply's last part waits for the client's delayed acknowledgement, some 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _import_pack(args: argparse.Namespace) -> int:
    config = settings.load()
    pack = pack_format.read(args.directory)
    database = Database(config.database_url)
    try:
        database.migrate()
        with database.write() as session:
            _, new = import_pack(session, pack, datetime.now(UTC))
            session.commit()
    finally:
        database.close()
    print(
        f"{pack.name}: {len(pack.stimuli)} stimuli, {'imported' if new else 'already here, nothing changed'}"
    )
    return 0


def _simulate(args: argparse.Namespace) -> int:
    if args.participants < 1:
        raise ValueError("--participants must be at least 1")
    if args.pack:
        packs = [pack_format.read(path) for path in args.pack]
    else:
        _, packs = _study(settings.load(), args.study)
    for i, pack in enumerate(packs):
        if pack.name in (other.name for other in packs[:i]):
            raise ValueError(f"--pack: two packs named {pack.name}; a study has one of that name")
        for model, _ in (*(args.fooled or ()), *(args.reasonable or ())):
            if model not in pack.models:
                raise ValueError(
                    f"the pack {pack.name} has no model {model!r}; it has {', '.join(pack.models)}"
                )
    rates = Rates(
        fooled=rates_of(packs, "fooled", PAPER_FOOLED, dict(args.fooled or ())),
        reasonable=rates_of(packs, "reasonable", PAPER_REASONABLE, dict(args.reasonable or ())),
        spread=Spread(**{field.name: getattr(args, f"sd_{field.name}") for field in fields(Spread)}),
        seed=args.seed,
    )
    crowd = Crowd(args.dropout, args.bad, args.rt_median_ms)
    played = simulate(args.url, args.study, packs, args.participants, args.seed, rates, crowd)
    left = f", {played.dropped_out} dropped out" if args.dropout else ""
    print(f"{played.finished} simulated participants finished {args.study}{left}")
    if args.bad:
        print("Not in earnest: " + ", ".join(f"{played.kinds[kind]} {kind}" for kind in BAD))
    return 0


def _power(args: argparse.Namespace) -> int:
    config = settings.load()
    if args.pack:
        packs = [pack_format.read(args.pack)]
        primary, looks = Primary(pack=packs[0].name), []
    else:
        definition, packs = _study(config, args.study)
        primary, looks = definition.primary, definition.look_sizes
    print(power_command.run(args, packs, primary, looks))
    return 0


def _study(config: Settings, name: str) -> tuple[Definition, list[Pack]]:
    """The study that the file of this name defines, and its packs, where the server finds both."""
    definition = Definition.model_validate(definitions.read(config.studies / f"{name}.toml"))
    found = [pack_format.read(path.parent) for path in sorted(config.stimuli.glob("*/manifest.json"))]
    packs = [pack for pack in found if pack.name in definition.packs]
    if missing := set(definition.packs) - {pack.name for pack in packs}:
        raise ValueError(f"there is no pack {min(missing)!r} in {config.stimuli}")
    return definition, packs


def rates_of(
    packs: Sequence[Pack],
    outcome: Literal["fooled", "reasonable"],
    mnist: Mapping[str, float],
    given: Mapping[str, float],
) -> dict[str, float]:
    """By "pack/model": the rate given for the model, else the published one for such a pack, else that of MNIST."""
    rates: dict[str, float] = {}
    for pack in packs:
        table = published.TABLES.get(published.kind_of(pack.manifest), {})
        theirs = {model: getattr(counts, outcome) / counts.n for model, counts in table.items()}
        usual: Mapping[str, float] = theirs or mnist
        rates |= {f"{pack.name}/{m}": rate for m, rate in {**usual, **given}.items() if m in pack.models}
    return rates


@contextmanager
def _results(args: argparse.Namespace) -> Iterator[tuple[Session, results.Results]]:
    """The results of --study, --version and --data as of now, with the session that read them."""
    from app import showing

    database = Database(settings.load().database_url)
    try:
        database.migrate()
        with database.read() as session:
            which = showing.Which(args.study, args.version, args.data)
            try:
                study, data = showing.select_study(session, which)
            except Refusal:
                version = f", version {args.version}," if args.version else ""
                raise ValueError(f"there is no study {args.study!r}{version} in this database") from None
            yield session, showing.shown(session, database, study, data)
    finally:
        database.close()


def _export(args: argparse.Namespace) -> int:
    with _results(args) as (session, found):
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(results_json(found), indent=1) + "\n")
        excluded = frozenset(p.pseudonym for p in found.progress if p.excluded)
        with (args.out / "responses.csv").open("w", newline="", encoding="utf-8") as file:
            file.writelines(tables.responses_csv(session, found.study, found.data, excluded))
        more = {"comments": args.comments, "recruiter_ids": args.recruiter_ids}
        if args.zip:
            with (args.out / "export.zip").open("wb") as archive:
                bundle.write_zip(archive, session, found, **more)
        else:
            bundle.write_folder(args.out, session, found, **more)
    print(f"{args.out}: results.json and responses.csv of {found.responses} responses ({found.data})")
    return 0


def _report(args: argparse.Namespace) -> int:
    from app.report import render_report  # draws figures, which nothing else here needs

    with _results(args) as (session, found):
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(render_report(session, found, args.comments), encoding="utf-8")
    print(f"{args.out}: report on {found.study.slug}, {found.included} complete participants ({found.data})")
    return 0
