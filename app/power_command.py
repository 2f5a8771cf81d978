"""`python -m app power`: its options, what it prints, the figure and the numbers that it writes."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from app import settings
from app.definition import ALPHA, Primary, found_in
from app.outcomes import OUTCOMES
from app.population import Spread, candidates, design
from app.power import (
    MOST_PARTICIPANTS,
    Power,
    bound,
    check,
    curve,
    detectable,
    detectable_said,
    paper_rate,
    rule,
    smallest,
)
from app.printed import p_value, percent
from ml import pack as pack_format
from ml.pack import Pack

USUAL = (*range(6, 41, 2), 50)


def add_arguments(parser: argparse.ArgumentParser, model_rate: Callable[[str], tuple[str, float]]) -> None:
    """The command's options; `model_rate` reads MODEL=RATE."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--study",
        default="mnist",
        help="its packs, primary comparison, target and looks are simulated (default: %(default)s)",
    )
    where.add_argument("--pack", type=Path, metavar="DIR", help="a pack alone, instead of a study's")
    for which in ("a", "b"):
        parser.add_argument(
            f"--{which}",
            type=model_rate,
            metavar="MODEL=RATE",
            help="default: the primary comparison's model, at the paper's MNIST rate",
        )
    parser.add_argument(
        "--participants",
        type=int,
        nargs="+",
        metavar="N",
        help="complete, included ones (default: 6 to 50, and the study's target)",
    )
    parser.add_argument("--power", type=float, default=0.8, help="the power wanted (default: %(default)s)")
    parser.add_argument("--alpha", type=float, default=ALPHA, help="(default: %(default)s)")
    parser.add_argument(
        "--replicates", type=int, default=4000, help="simulated studies (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    for field in fields(Spread):
        parser.add_argument(
            f"--sd-{field.name.replace('_', '-')}",
            type=float,
            default=field.default,
            metavar="SD",
            help=f"spread of {field.name.replace('_', ' x ')} effects, in logits (an assumption: %(default)s)",
        )
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="a figure.svg, or a folder for figure and numbers"
    )


def run(args: argparse.Namespace) -> int:
    if args.pack:
        packs = [pack_format.read(args.pack)]
        print(said(args, packs, Primary(pack=packs[0].name)))
    else:
        definition, packs = found_in(settings.load(), args.study)
        print(said(args, packs, definition.primary, definition.look_sizes))
    return 0


def said(args: argparse.Namespace, packs: Sequence[Pack], primary: Primary, looks: Sequence[int] = ()) -> str:
    """What the command prints; `looks` are `Definition.look_sizes`.

    Raises ValueError for what cannot be simulated.
    """
    target = looks[-1] if looks and looks[-1] <= MOST_PARTICIPANTS else None
    participants = sorted(set(args.participants or (*USUAL, target or USUAL[0])))
    check(participants, args.replicates, args.alpha)
    if not 0 < args.power < 1:
        raise ValueError("--power lies between 0 and 1, and is neither")
    if args.seed < 0:
        raise ValueError("--seed must not be negative")
    spread = Spread(**{field.name: getattr(args, f"sd_{field.name}") for field in fields(Spread)})
    asked = (args.a, primary.a), (args.b, primary.b)
    models, rates = zip(*(given or paper_rate(model, primary.outcome) for given, model in asked), strict=True)
    designs, most = min(args.replicates, 20), max(participants[-1], target or 0)
    drawn = design(candidates(packs), primary.pack, models, most, designs, args.seed, progress=True)
    simulated = args.replicates, args.seed, args.alpha, looks
    found = curve(drawn, rates, spread, participants, *simulated, progress=True)
    nearest = detectable(drawn, rates, spread, target, args.power, *simulated) if target else None
    told = {} if nearest is None else dict(zip(models, (rates[0], nearest), strict=True))
    title = f"{OUTCOMES[primary.outcome].title}: {title_of(models, rates)}, {primary.pack}"
    tests = rule(target, args.alpha, looks) if target else []
    if args.out:
        from app.power_figure import figure

        svg = args.out if args.out.suffix == ".svg" else args.out / "power.svg"
        svg.parent.mkdir(parents=True, exist_ok=True)
        svg.write_text(figure(found, args.power, f"Power: {title}"))
        if svg != args.out:
            numbers = {name: getattr(args, name) for name in ("alpha", "replicates", "seed")} | {
                "outcome": primary.outcome,
                "models": dict(zip(models, rates, strict=True)),
                "pack": primary.pack,
                "spread": asdict(spread),
                "powers": [asdict(power) for power in found],
                "target": target,
                "looks": [{"n": n, "boundary": boundary} for n, boundary in tests],
                "wanted": args.power,
                "detectable": told or None,
            }
            (args.out / "power.json").write_text(json.dumps(numbers, indent=1) + "\n")
    effects = ", ".join(f"{name.replace('_', ' x ')} {sd:g}" for name, sd in asdict(spread).items())
    lines = [
        title,
        f"share of {args.replicates} simulated studies with p <= {args.alpha:g} (Monte Carlo standard error)",
        f"spread in logits, an assumption: {effects}",
        table(found, args.replicates),
        "N counts complete, included participants: recruit more, for those who leave or are excluded.",
    ]
    if len(tests) > 1 and target in participants:
        declared = ", ".join(f"{p_value(boundary)} at {n}" for n, boundary in tests)
        lines.append(
            f"At the target of {target}: the share with p at most its boundary at any declared look ({declared})."
        )
    if target:
        lines.append(detectable_said(rates, nearest, target, args.power))
    return "\n".join([*lines, conclusion(found, args.power)])


def title_of(models: Sequence[str], rates: Sequence[float]) -> str:
    """The two models and the rates that are expected of them."""
    return " against ".join(
        f"{model.replace('_', ' ')} {percent(rate)} %" for model, rate in zip(models, rates, strict=True)
    )


def conclusion(powers: Sequence[Power], wanted: float) -> str:
    """How many participants the headline test needs, as a sentence."""
    least = smallest(powers, wanted)
    if least is None:
        most = max(p.participants for p in powers)
        return f"More than {most} participants are needed for a power of {percent(wanted)} % on these images."
    return (
        f"{least.participants} participants are the fewest of these numbers whose simulated power reaches "
        f"{percent(wanted)} %, give or take {100 * least.sign_flip_se:.1f} points, for new participants on these "
        "images."
    )


def table(powers: Sequence[Power], replicates: int) -> str:
    """The powers in percent as text, with Monte Carlo standard errors, or bounds where no study differs."""
    lines = [f"{'N':>5}{'these images':>20}{'new images':>20}"]
    for p in powers:
        cells = (
            f"{percent(power):>9} % {f'({_sure(power, se, replicates)})':<9}"
            for power, se in ((p.sign_flip, p.sign_flip_se), (p.new_images, p.new_images_se))
        )
        lines.append((f"{p.participants:>5}" + "".join(cells)).rstrip())
    return "\n".join(lines)


def _sure(power: float, se: float, replicates: int) -> str:
    beyond = bound(power, replicates)
    return f"{100 * se:.1f}" if beyond is None else f"{'>=' if power else '<='} {percent(beyond)}"
