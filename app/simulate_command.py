"""`simulate`: participants played over HTTP, as a rehearsal."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Literal

from app import published, settings
from app.bot import BAD, PAPER_FOOLED, PAPER_REASONABLE, RT_MEDIAN_MS, Crowd, Rates
from app.definition import found_in
from app.population import Spread
from app.simulate import simulate
from ml import pack as pack_format
from ml.pack import Pack


def add_arguments(parser: argparse.ArgumentParser, model_rate: Callable[[str], tuple[str, float]]) -> None:
    parser.add_argument(
        "--url",
        default=f"http://{os.environ.get('HOST') or '127.0.0.1'}:{os.environ.get('PORT') or 8000}",
        help="the running server (default: %(default)s, from HOST and PORT)",
    )
    parser.add_argument("--study", default="mnist", help="the study's name in its URL (default: %(default)s)")
    parser.add_argument(
        "--pack",
        type=Path,
        action="append",
        metavar="DIR",
        help="each of the study's packs (default: those that its file names)",
    )
    parser.add_argument("--participants", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    for name, default in (("fooled", PAPER_FOOLED), ("reasonable", PAPER_REASONABLE)):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            type=model_rate,
            action="extend",
            metavar="MODEL=RATE",
            help="default: the paper's for the pack's data set and attack, where it has none those of MNIST, "
            + " ".join(f"{k}={v}" for k, v in default.items()),
        )
    for field in fields(Spread):
        parser.add_argument(
            f"--sd-{field.name.replace('_', '-')}",
            type=float,
            default=0.0,
            metavar="SD",
            help=f"spread of {field.name.replace('_', ' x ')} effects about the rates, in logits (default: 0)",
        )
    parser.add_argument(
        "--dropout", type=float, default=0.0, metavar="SHARE", help="who leave at a random point (default: 0)"
    )
    parser.add_argument(
        "--bad",
        type=float,
        default=0.0,
        metavar="SHARE",
        help=f"who do not take part in earnest: {', '.join(BAD)} (default: 0)",
    )
    parser.add_argument(
        "--rt-median-ms",
        type=float,
        default=RT_MEDIAN_MS,
        metavar="MS",
        help="of labelling an image; judging one is quicker (default: %(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    if args.participants < 1:
        raise ValueError("--participants must be at least 1")
    if args.pack:
        packs = [pack_format.read(path) for path in args.pack]
    else:
        _, packs = found_in(settings.load(), args.study)
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
