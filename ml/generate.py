"""`python -m ml.generate`: trains the study's models, attacks them and writes a stimulus pack."""

import argparse
import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ml import distributed, own_models, pack, train
from ml.attacks import ATTACKS
from ml.datasets import DATASETS, Dataset, DatasetError, load, to_float
from ml.defenses import DEFENSES
from ml.labeled_folder import load_folder
from ml.manifest import is_name
from ml.pairs import Attempts, PairsError, Right, RightAnswers, attack_enough
from ml.versions import installed_versions

STUDY_MODELS = ("undefended", "distilled", "gradient_regularized")

CLEAN_IMAGES = 2  # of each label, unmodified, for practice and control trials


class GenerateError(Exception):
    """No pack can be made; the message is one line that says why."""


@dataclass(frozen=True)
class Judge:
    """A model that is attacked, with what the manifest says of it."""

    network: nn.Module
    record: dict[str, Any]  # training, clean_accuracy, checkpoint_sha256
    logits: Tensor | None = None  # (N, K), of a researcher's own: what it gave for all test images


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 2, with one line on stderr, where it cannot do what is asked."""
    parser = argparse.ArgumentParser(prog="python -m ml.generate", description=__doc__)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--dataset", choices=sorted(DATASETS))
    data.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="your own images instead: 8-bit gray PNGs of one size, a folder for each label",
    )
    parser.add_argument("--attack", choices=sorted(ATTACKS), required=True)
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME[=MODULE:FUNCTION[,WEIGHTS]]",
        help="a model to attack, once for each: your own (FUNCTION() gives a torch module from pixels "
        f"(N, 1, H, W) in [0, 1] to logits; WEIGHTS is its state dict) or one of {', '.join(DEFENSES)} "
        f"(default: {', '.join(STUDY_MODELS)})",
    )
    parser.add_argument("--data-dir", type=Path, help="folder with the data set's files (default: $DATA_DIR)")
    parser.add_argument("--out", type=Path, help="the pack's folder (default: stimuli/<dataset>-<attack>)")
    parser.add_argument("--seed", type=int, default=0)
    train.add_arguments(parser)
    args = parser.parse_args(argv)
    models = tuple(args.model or STUDY_MODELS)
    own = ["=" in model for model in models]
    with distributed.started():
        try:
            out = args.out and checked(args.out)
            if args.images is not None:
                dataset = load_folder(args.images, split=not all(own))
            out = out or checked(Path("stimuli") / f"{args.dataset or dataset.name}-{args.attack}")
            device = train.pick_device(args.device)
            schedule = train.schedule_for(args.dataset or "", args.schedule, args.epochs, args.precision)
            if args.dataset is not None:
                dataset = load(args.dataset, args.data_dir)
            generate(
                dataset,
                args.attack,
                out,
                args.seed,
                schedule,
                device,
                args.checkpoints,
                models,
                dict(args.penalty),
            )
        except (
            DatasetError,
            train.TrainingError,
            own_models.OwnModelError,
            pack.PackError,
            PairsError,
            GenerateError,
            OSError,
        ) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(
                "interrupted; what is trained is kept, and the next run goes on from there", file=sys.stderr
            )
            return 130
    return 0


def checked(out: Path) -> Path:
    """The folder again, if a pack can be written there; raises GenerateError."""
    train.check_writable(out, "--out")
    if not is_name(name := out.resolve().name):
        raise GenerateError(
            f"--out: a pack cannot be called {name!r}, only by at most 100 letters, digits, '.', '_' and '-', of "
            f"which the first is a letter or a digit"
        )
    if out.exists() and not pack.replaceable(out):
        raise GenerateError(f"{out}: exists and is not a stimulus pack; choose another --out")
    return out


def generate(
    dataset: Dataset,
    attack: str,
    out: Path,
    seed: int,
    schedule: train.Schedule,
    device: torch.device,
    checkpoints: Path,
    models: Sequence[str] = STUDY_MODELS,
    penalties: Mapping[str, float] | None = None,
) -> pack.Pack:
    """Trains what is not trained yet, attacks, writes the pack to `out` and prints a summary.

    `models` are names of DEFENSES or specifications of `own_models.load`; `penalties` replace those of models
    named so. Several processes share the work; the first one writes. Raises GenerateError, PairsError,
    TrainingError, OwnModelError, PackError.
    """
    versions = installed_versions()
    started = time.monotonic()
    judges = judges_for(models, dataset, schedule, seed, device, checkpoints, penalties or {})
    trained = time.monotonic()
    networks = {name: judge.network for name, judge in judges.items()}
    right = RightAnswers(dataset, networks)
    attempts, skipped = attack_enough(dataset, networks, attack, right)
    for name, judge in judges.items():
        if judge.logits is not None:  # one's own, which by now may have become another
            own_models.ask_again(name, judge.network, dataset, judge.logits)
    if distributed.first():
        manifest, images = assemble(dataset, attempts, right)
        manifest |= {
            "name": out.resolve().name,
            "attack": {"name": attack, "parameters": ATTACKS[attack][1]},
            "models": [
                {"name": name, **judge.record}
                | {"success_rate_before_filter": _rate(attempts.attacked[name].success)}
                for name, judge in judges.items()
            ],
            "skipped_sources": skipped,
            "seed": seed,
            "versions": versions,
        }
        replaced = (out / "manifest.json").exists()
        written = pack.write(out, manifest, images)
        print(summary(written, attempts, dataset))
        print(f"Training {trained - started:.0f} s, attacks and pack {time.monotonic() - trained:.0f} s.")
        print(f"{'Replaced' if replaced else 'Wrote'} {out} (pack_sha256 {written.pack_sha256}).")
    distributed.wait()
    return pack.read(out)


def judges_for(
    models: Sequence[str],
    dataset: Dataset,
    schedule: train.Schedule,
    seed: int,
    device: torch.device,
    checkpoints: Path,
    penalties: Mapping[str, float],
) -> dict[str, Judge]:
    """The models by name, trained, restored or the researcher's own. Errors as of `generate`."""
    names = [model.partition("=")[0] for model in models]
    if unused := penalties.keys() - set(models):
        raise GenerateError(f"--penalty {min(unused)}: not trained here; the models are {', '.join(names)}")
    for model, name in zip(models, names, strict=True):
        if "=" not in model and model not in DEFENSES:
            raise GenerateError(
                f"--model {model}: not one of {', '.join(DEFENSES)}; your own is NAME=MODULE:FUNCTION"
            )
        if names.count(name) > 1:
            raise GenerateError(f"--model {name}: named twice")
        if not is_name(name):
            raise GenerateError(f"--model {name}: a name is letters, digits, '.', '_' and '-' alone")
    # One's own first, as what is wrong with them shows at once.
    own = {
        name: _own(model, dataset, device) for name, model in zip(names, models, strict=True) if "=" in model
    }
    judges = {}
    for name in names:
        settings = {"penalty": penalties[name]} if name in penalties else None
        judges[name] = own.get(name) or _trained(name, dataset, schedule, seed, device, checkpoints, settings)
    return judges


def _own(model: str, dataset: Dataset, device: torch.device) -> Judge:
    loaded = own_models.load(model, device)
    network = own_models.Guarded(loaded.name, loaded.network, len(dataset.labels), "attacked images")
    logits = own_models.check(loaded, dataset)
    right = logits.argmax(1).numpy() == dataset.test_labels
    record = {
        "training": {"own": loaded.source, "weights": loaded.weights},
        "clean_accuracy": round(float(right.mean()), 6),
        "checkpoint_sha256": loaded.weights_sha256,
    }
    return Judge(network, record, logits)


def _trained(
    name: str,
    dataset: Dataset,
    schedule: train.Schedule,
    seed: int,
    device: torch.device,
    checkpoints: Path,
    settings: dict[str, float] | None,
) -> Judge:
    model = train.obtain(name, dataset, schedule, seed, device, checkpoints, settings)
    if not model.checked:
        train.right_answers(model, dataset)  # compares its accuracy with the checkpoint's
    record = {
        "training": model.config,
        "clean_accuracy": round(model.clean_accuracy, 6),
        "checkpoint_sha256": model.checkpoint_sha256,
    }
    return Judge(model.network, record)


def assemble(dataset: Dataset, attempts: Attempts, right: Right) -> tuple[dict[str, Any], list[bytes]]:
    """The manifest's part about images, and the PNGs it names by hash."""
    images: dict[str, bytes] = {}

    def stored(pixels: npt.NDArray[np.uint8]) -> str:
        data = pack.encode_png(pixels)
        sha256 = hashlib.sha256(data).hexdigest()
        images[sha256] = data
        return sha256

    def unmodified(index: int) -> dict[str, Any]:
        label = dataset.labels[dataset.test_labels[index]]
        return {"sha256": stored(dataset.test_images[index, 0]), "source_index": index, "source_label": label}

    stimuli = []
    labels = dataset.test_labels[attempts.sources]
    order = np.lexsort((attempts.targets, attempts.sources, labels))
    for row in order[attempts.survivors[order]]:
        index, target = int(attempts.sources[row]), int(attempts.targets[row])
        for name, attacked in attempts.attacked.items():
            pixels, original = attacked.pixels[row, 0], dataset.test_images[index, 0]
            difference = to_float(pixels).astype(np.float64) - to_float(original)
            stimuli.append(
                {
                    "sha256": stored(pixels),
                    "model": name,
                    "source_index": index,
                    "source_label": dataset.labels[labels[row]],
                    "target_label": dataset.labels[target],
                    "prediction": dataset.labels[attacked.predictions[row]],
                    "target_probability": round(float(attacked.probabilities[row]), 6),
                    "iterations": int(attacked.iterations[row]),
                    "pixels_changed": int((pixels != original).sum()),
                    "l2": round(float(np.linalg.norm(difference)), 6),
                    "linf": round(float(np.abs(difference).max()), 6),
                }
            )

    clean: list[dict[str, Any]] = []
    taken = {dataset.test_images[index].tobytes() for index in attempts.sources}
    for label in range(len(dataset.labels)):
        fresh = dataset.test_labels == label
        fresh[: attempts.sources[labels == label].max() + 1] = False
        for index in map(int, np.flatnonzero(fresh)):
            if sum(image["source_label"] == dataset.labels[label] for image in clean) == CLEAN_IMAGES:
                break
            if (data := dataset.test_images[index].tobytes()) not in taken and right[index]:
                taken.add(data)
                clean.append(unmodified(index))
    survivors = sorted({int(index) for index in attempts.sources[attempts.survivors]})
    manifest = {
        "labels": list(dataset.labels),
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "licence": dataset.licence,
            "files": dataset.files,
        }
        | ({"note": dataset.note} if dataset.note else {}),
        "stimuli": stimuli,
        "originals": [unmodified(index) for index in survivors],
        "clean": clean,
        "grids": {name: stored(_grid(dataset, attempts, name)) for name in attempts.attacked},
    }
    return manifest, list(images.values())


def _grid(dataset: Dataset, attempts: Attempts, model: str) -> npt.NDArray[np.uint8]:
    """Rows are source labels, columns targets: the first source image of each label as the attack on this model
    left it, whether or not it succeeded, and unmodified on the diagonal."""
    count = len(dataset.labels)
    cells = np.zeros((count, count, *dataset.test_images.shape[2:]), dtype=np.uint8)
    for label in range(count):
        first = attempts.sources[dataset.test_labels[attempts.sources] == label].min()
        cells[label, label] = dataset.test_images[first, 0]
        for row in np.flatnonzero(attempts.sources == first):
            cells[label, attempts.targets[row]] = attempts.attacked[model].pixels[row, 0]
    return pack.grid_pixels(cells)


def summary(written: pack.Pack, attempts: Attempts, dataset: Dataset) -> str:
    """What was made, in a few lines to read."""
    lines = ["", f"{'model':24}{'clean accuracy':>16}{'attack reached its target':>28}"]
    for model in written.manifest["models"]:
        rate = model["success_rate_before_filter"]
        share = f"{rate['count']} of {rate['n']} ({rate['rate']:.1%})"
        lines.append(f"{model['name']:24}{model['clean_accuracy']:>16.2%}{share:>28}")
    lines.append("")
    lines.append("Pairs that fool every model, read back from their PNGs (source images in brackets):")
    for label, name in enumerate(dataset.labels):
        of_label = dataset.test_labels[attempts.sources] == label
        left = attempts.sources[of_label & attempts.survivors]
        lines.append(f"  {name}: {len(left)} of {of_label.sum()} ({len(set(left))})")
    images = len(list((written.directory / "images").iterdir()))
    lines.append(
        f"{int(attempts.survivors.sum())} pairs, {len(written.stimuli)} stimuli, {images} image files."
    )
    return "\n".join(lines)


def _rate(success: npt.NDArray[np.bool_]) -> dict[str, int | float]:
    count, n = int(success.sum()), len(success)
    return {"count": count, "n": n, "rate": round(count / n, 6)}


if __name__ == "__main__":
    sys.exit(main())
