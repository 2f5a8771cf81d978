"""`python -m ml.evaluate`: the paper's evidence beside its claims, as a page, figures and JSON."""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from ml import (
    claims,
    cost,
    distributed,
    evaluation_json,
    evaluation_report,
    figures,
    intervals,
    measurements,
    picture_figures,
    pictures,
    sweep,
    train,
)
from ml.checkpoints import Trained
from ml.datasets import DATASETS, Dataset, DatasetError, load
from ml.defenses import COMBINATIONS
from ml.evidence import FIVE, Measured
from ml.measurements import Bools
from ml.models import Network
from ml.versions import installed_versions

JSMA_MODELS = ("distilled", "gradient_regularized")


class EvaluateError(Exception):
    """No report can be made; the message is one line that says why."""


@dataclass(frozen=True)
class Options:
    """What a run measures, and by which schedule and seed its models are trained."""

    schedule: str = "study"
    epochs: int | None = None
    precision: str = "float32"
    seed: int = 0
    images: int = 1000
    combinations: bool = False
    cost_repetitions: int = 15
    penalties: Mapping[str, float] = field(default_factory=dict)  # in place of the paper's, by model
    sweep_points: int = 0  # log-spaced penalties of a sweep that chooses them; 0: no sweep


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 2, with one line on stderr, where it cannot do what is asked."""
    parser = argparse.ArgumentParser(prog="python -m ml.evaluate", description=__doc__)
    parser.add_argument("--dataset", choices=sorted(DATASETS), required=True)
    parser.add_argument("--data-dir", type=Path, help="folder with the data set's files (default: $DATA_DIR)")
    parser.add_argument("--out", type=Path, help="the report's folder (default: docs/results/<dataset>)")
    parser.add_argument("--seed", type=int, default=0)
    train.add_arguments(parser)
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="first choose the penalties on held-out training images, and keep the table in the report",
    )
    parser.add_argument(
        "--sweep-points",
        type=_at_least(2),
        default=sweep.POINTS,
        help=f"log-spaced penalties of a sweep (default: {sweep.POINTS}, as in the paper)",
    )
    parser.add_argument(
        "--images", type=_at_least(2), default=1000, help="test images that are attacked (default: 1000)"
    )
    parser.add_argument(
        "--combinations", action="store_true", help="also train and evaluate the paper's combinations"
    )
    parser.add_argument(
        "--cost-repetitions",
        type=_at_least(cost.FEWEST, or_none=True),
        default=15,
        help=f"training steps that are timed, at least {cost.FEWEST}; 0: none (default: 15)",
    )
    args = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    command = shlex.join(["python", "-m", "ml.evaluate", *given])
    command = command.encode(errors="backslashreplace").decode()  # names of files need not be UTF-8
    out = args.out or Path("docs/results") / args.dataset
    options = Options(
        args.schedule,
        args.epochs,
        args.precision,
        args.seed,
        args.images,
        args.combinations,
        args.cost_repetitions,
        dict(args.penalty),
        args.sweep_points if args.sweep else 0,
    )
    with distributed.started():
        return _run(args, out, options, command)


def _run(args: argparse.Namespace, out: Path, options: Options, command: str) -> int:
    try:
        train.check_writable(out, "--out")
        if out.exists() and not evaluation_report.replaceable(out):
            raise EvaluateError(f"{out}: exists and is not an evaluation's folder; choose another --out")
        device = train.pick_device(args.device)
        dataset = load(args.dataset, args.data_dir)
        report = evaluate(dataset, out, options, device, args.checkpoints, command)
    except (DatasetError, train.TrainingError, EvaluateError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; models that are trained are kept, and the next run goes on from them",
            file=sys.stderr,
        )
        return 130
    if distributed.first():
        print(summary(report))
        print(f"Wrote {out}: report.html, report.json and {len(report['figures'])} figures.")
    return 0


def evaluate(
    dataset: Dataset, out: Path, options: Options, device: torch.device, checkpoints: Path, command: str
) -> dict[str, Any]:
    """Trains what is not trained yet, measures everything and writes the report to `out`; returns report.json.

    Of several processes, which share the training, the first one writes.
    """
    versions = installed_versions("scipy", "matplotlib")
    schedule = train.schedule_for(dataset.name, options.schedule, options.epochs, options.precision)
    names = (*FIVE, *(COMBINATIONS if options.combinations else ()))
    if unused := options.penalties.keys() - set(names):
        raise EvaluateError(f"--penalty {min(unused)}: not trained here; the models are {', '.join(names)}")
    check_images(dataset, options)
    swept = sweep.RANGES.keys() - options.penalties.keys() if options.sweep_points else ()
    sweeps = {
        name: sweep.sweep(
            name,
            dataset,
            schedule,
            options.seed,
            device,
            checkpoints,
            sweep.penalties(name, options.sweep_points),
        )
        for name in names
        if name in swept
    }
    penalties = {**{name: found.chosen for name, found in sweeps.items()}, **options.penalties}
    models = {
        name: train.obtain(
            name,
            dataset,
            schedule,
            options.seed,
            device,
            checkpoints,
            {"penalty": penalties[name]} if name in penalties else None,
        )
        for name in names
    }
    started = time.monotonic()
    networks = {name: model.network for name, model in models.items()}
    clean = {name: train.right_answers(model, dataset) for name, model in models.items()}
    measured = measure(dataset, networks, clean, options, schedule, device)
    drawn = draw(measured, pictures.input_gradients(networks, dataset, device), dataset.labels)
    report = {
        "dataset": {
            "name": dataset.name,
            "note": dataset.note,
            "labels": dataset.labels,
            "test_images": len(dataset.test_labels),
            "train_images": len(dataset.train_labels),
            "source": dataset.source,
            "licence": dataset.licence,
            "files": dataset.files,
            "sha256": dataset.sha256,
        },
        "schedule": schedule_record(options.schedule, models["undefended"].config["schedule"]),
        "seed": options.seed,
        "versions": versions,
        "command": command,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "sweeps": {name: found.as_json() for name, found in sweeps.items()},
        "epsilons": measured.transfer.epsilons,
        "models": {name: model_record(model, measured, name) for name, model in models.items()},
        **evaluation_json.measurements(measured, measurements.overlaps(measured.transfer)),
        "claims": [evaluation_json.claim(claim) for claim in claims.judge(measured)],
        "figures": evaluation_report.figure_records(drawn),
        "seconds": time.monotonic() - started,
    }
    rounded: dict[str, Any] = evaluation_json.rounded(report)
    if distributed.first():
        evaluation_report.write(out, rounded, drawn)
    distributed.wait()
    return rounded


def check_images(dataset: Dataset, options: Options) -> None:
    """Raises EvaluateError for a data set that could not be measured once networks are trained on it."""
    tests = np.bincount(dataset.test_labels, minlength=len(dataset.labels))
    if not tests.all():
        label = dataset.labels[int(tests.argmin())]
        raise EvaluateError(f"{dataset.name}: no test image of label {label}; every label needs one")
    if options.sweep_points and len(dataset.train_labels) < 2:
        raise EvaluateError(f"{dataset.name}: one training image, of which --sweep can hold none out")


def measure(
    dataset: Dataset,
    networks: Mapping[str, Network],
    clean: Mapping[str, Bools],
    options: Options,
    schedule: train.Schedule,
    device: torch.device,
) -> Measured:
    """Everything that the report tells of these networks."""
    of = measurements.batch(dataset, options.images, device)
    total = len(of.labels) * len(networks) ** 2 * len(measurements.EPSILONS) * len(measurements.SINGLE_STEPS)
    with tqdm(total=total, desc="FGSM and TGSM", unit="answer", unit_scale=True) as bar:
        transfer = measurements.transfer(networks, of, on_progress=bar.update)
    return Measured(
        dataset=dataset.name,
        models=tuple(networks),
        clean=clean,
        transfer=transfer,
        gradients=measurements.gradients(networks, of),
        jsma={
            name: pictures.jsma(networks[name], dataset, device) for name in tqdm(JSMA_MODELS, desc="JSMA")
        },
        tgsm={
            name: pictures.iterated_tgsm(network, dataset, device)
            for name, network in tqdm(networks.items(), desc="iterated TGSM")
        },
        cost=time_training(dataset, tuple(networks), options, schedule, device),
    )


def draw(measured: Measured, shown: pictures.InputGradients, labels: Sequence[str]) -> dict[str, bytes]:
    """The figures by file name, in the page's order."""
    functions: dict[str, Callable[[], Figure]] = {
        "fgsm": lambda: figures.curves(measured.transfer, "fgsm", measured.dataset),
        "tgsm": lambda: figures.curves(measured.transfer, "tgsm", measured.dataset),
        "overlap": lambda: figures.overlap(measurements.overlaps(measured.transfer)),
        "gradient-norms": lambda: figures.gradient_norms(measured.gradients),
        "log-probabilities": lambda: figures.log_probabilities(measured.gradients),
        "jsma": lambda: picture_figures.jsma(measured.jsma, labels),
        "input-gradients": lambda: picture_figures.input_gradients(shown, labels),
        "tgsm-grids": lambda: picture_figures.tgsm_grids(measured.tgsm, labels),
        "tgsm-path": lambda: picture_figures.tgsm_path(measured.tgsm, labels),
        "tgsm-steps": lambda: figures.steps(measured.tgsm),
    }
    if (timed := measured.cost) is not None:
        functions["cost"] = lambda: figures.cost(timed, measured.models)
    shades = {"jsma": 24, "tgsm-grids": 12, "tgsm-path": 24}  # few for the grids, which are nearly all noise
    colors = {"input-gradients": 120}
    return {
        f"{name}.png": figures.png(function, colors.get(name, 56), shades.get(name, 0))
        for name, function in tqdm(functions.items(), desc="figures")
    }


def time_training(
    dataset: Dataset,
    models: Sequence[str],
    options: Options,
    schedule: train.Schedule,
    device: torch.device,
) -> cost.Cost | None:
    """What each model's training costs, unless no repetitions are wanted."""
    if not options.cost_repetitions:
        return None
    with tqdm(desc="cost of training", unit="step") as bar:
        return cost.measure(dataset, models, schedule, options.cost_repetitions, device, bar.update)


def schedule_record(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule as it stands in checkpoints, its kind, and both in words."""
    long = f"{config['batches']:,} batches" if "batches" in config else f"{config['epochs']} epochs"
    words = f"{long} of {config['batch']} images, Adam with learning rate {config['learning_rate']:g}"
    words += f" and epsilon {config['adam_epsilon']:g}"
    if "precision" in config:
        words += f", products in {config['precision']}"
    return {**config, "kind": kind, "words": words}


def model_record(model: Trained, measured: Measured, name: str) -> dict[str, Any]:
    """What the report says of a network: its accuracy as measured here, and what made it."""
    accuracy = intervals.share(measured.clean[name])
    return {
        "clean_accuracy": accuracy.value,
        "low": accuracy.low,
        "high": accuracy.high,
        "checkpoint": model.checkpoint.name,
        "checkpoint_sha256": model.checkpoint_sha256,
        "config": model.config,
        "versions": model.versions,
    }


def summary(report: Mapping[str, Any]) -> str:
    """The verdicts, in a few lines to read."""
    lines = ["", f"{'verdict':15}claim"]
    lines += [f"{claim['verdict']:15}{claim['id']} {claim['title']}" for claim in report["claims"]]
    return "\n".join([*lines, ""])


def _at_least(least: int, or_none: bool = False) -> Any:
    def number(text: str) -> int:
        value = int(text)
        if value < least and not (or_none and value == 0):
            raise argparse.ArgumentTypeError(f"{text} is not at least {least}{' and not 0' * or_none}")
        return value

    return number


if __name__ == "__main__":
    sys.exit(main())
