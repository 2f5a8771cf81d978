"""`python -m ml.generate`: trains the study's models, attacks them and writes a stimulus pack."""

import argparse
import hashlib
import importlib.metadata
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import torch
from tqdm import tqdm

from ml import attacks, pack, train
from ml.datasets import DATASETS, Dataset, DatasetError, load, to_float

STUDY_MODELS = ("undefended", "distilled", "gradient_regularized")

ATTACKS: dict[str, tuple[Callable[..., attacks.AttackResult], dict[str, Any]]] = {
    "jsma": (attacks.jsma, {"theta": 1.0, "gamma": 0.25}),
    "tgsm": (attacks.iterated_tgsm, {"steps": 10, "epsilon": 0.1}),
}

SOURCES = 5  # test images of each label that are attacked at first: 45 pairs with 9 targets
FEWER_SOURCES = {"digits": 3}  # the set to try the whole chain with, in under a minute on two cores
ENOUGH_PAIRS, ENOUGH_SOURCES = 9, 3  # of each label; below, further test images follow
MOST_SOURCES = 40  # of each label, so that a model that cannot be fooled does not take forever
CLEAN_IMAGES = 2  # of each label, unmodified, for practice and control trials


class GenerateError(Exception):
    """No pack can be made; the message is one line that says why."""


@dataclass(frozen=True)
class Attacked:
    """What the attack on one model made of P (source image, target) pairs, in 8 bits a pixel.

    `success` is the attack's own result; `predictions` and `probabilities` (of the target) are measured on the
    PNG as read back.
    """

    pixels: npt.NDArray[np.uint8]  # (P, 1, H, W)
    predictions: npt.NDArray[np.int64]  # (P,)
    probabilities: npt.NDArray[np.float64]  # (P,)
    iterations: npt.NDArray[np.int64]  # (P,)
    success: npt.NDArray[np.bool_]  # (P,)


@dataclass(frozen=True)
class Attempts:
    """All pairs attacked: source image, target and, by model, the outcome."""

    sources: npt.NDArray[np.int64]  # (P,), positions in the test images
    targets: npt.NDArray[np.int64]  # (P,)
    attacked: dict[str, Attacked]

    @property
    def survivors(self) -> npt.NDArray[np.bool_]:
        """(P,), the pairs whose image fools every model."""
        fooled = [attacked.predictions == self.targets for attacked in self.attacked.values()]
        return np.asarray(np.stack(fooled).all(0))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 2, with one line on stderr, where it cannot do what is asked."""
    parser = argparse.ArgumentParser(prog="python -m ml.generate", description=__doc__)
    parser.add_argument("--dataset", choices=sorted(DATASETS), required=True)
    parser.add_argument("--attack", choices=sorted(ATTACKS), required=True)
    parser.add_argument("--data-dir", type=Path, help="folder with the data set's files (default: $DATA_DIR)")
    parser.add_argument("--out", type=Path, help="the pack's folder (default: stimuli/<dataset>-<attack>)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--epochs", type=_positive, help="passes over the training images (default: 4; digits 3)"
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="where trained models are"
    )
    args = parser.parse_args(argv)
    out = args.out or Path("stimuli") / f"{args.dataset}-{args.attack}"
    try:
        if out.exists() and not pack.replaceable(out):
            raise GenerateError(f"{out}: exists and is not a stimulus pack; choose another --out")
        device = train.pick_device(args.device)
        dataset = load(args.dataset, args.data_dir)
        generate(dataset, args.attack, out, args.seed, args.epochs, device, args.checkpoints)
    except (DatasetError, train.TrainingError, pack.PackError, GenerateError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; models that are trained are kept, and the next run goes on from them",
            file=sys.stderr,
        )
        return 130
    return 0


def generate(
    dataset: Dataset,
    attack: str,
    out: Path,
    seed: int,
    epochs: int | None,
    device: torch.device,
    checkpoints: Path,
) -> pack.Pack:
    """Trains what is not trained yet, attacks, writes the pack to `out` and prints a summary."""
    versions = _versions()  # first: what it needs must not be missing after an hour of training
    started = time.monotonic()
    schedule = train.schedule_for(dataset.name, epochs=epochs)
    models = {name: train.obtain(name, dataset, schedule, seed, device, checkpoints) for name in STUDY_MODELS}
    trained = time.monotonic()
    networks: dict[str, torch.nn.Module] = {name: model.network for name, model in models.items()}
    answers = [train.predict(network, dataset.test_images).argmax(1).numpy() for network in networks.values()]
    for (name, model), given in zip(models.items(), answers, strict=True):
        measured = float((given == dataset.test_labels).mean())
        if abs(measured - model.clean_accuracy) > 0.002:  # rounding elsewhere may turn an image or two
            raise GenerateError(
                f"{model.checkpoint}: {name} has an accuracy of {measured:.4f} where the checkpoint says "
                f"{model.clean_accuracy:.4f}; it is damaged: delete it, and the next run trains it again"
            )
    right = np.asarray((np.stack(answers) == dataset.test_labels).all(0))  # (N,), read rightly by every model
    attempts, skipped = attack_enough(dataset, networks, attack, right)
    manifest, images = assemble(dataset, attempts, right)
    manifest |= {
        "name": out.resolve().name,
        "attack": {"name": attack, "parameters": ATTACKS[attack][1]},
        "models": [
            {
                "name": name,
                "training": model.config,
                "clean_accuracy": round(model.clean_accuracy, 6),
                "checkpoint_sha256": model.checkpoint_sha256,
                "success_rate_before_filter": _rate(attempts.attacked[name].success),
            }
            for name, model in models.items()
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
    return written


def attack_enough(
    dataset: Dataset, networks: dict[str, torch.nn.Module], attack: str, right: npt.NDArray[np.bool_]
) -> tuple[Attempts, list[dict[str, Any]]]:
    """Attacks the first SOURCES (or FEWER_SOURCES) test images of every label, then, while a label has too few
    surviving pairs or source images, its next ones.

    An image that a model misreads unmodified (`right` is false) is passed over: no attack is needed there, and
    nothing could be said about one. Returns the attempts and the images passed over.
    """
    queues = {
        label: list(np.flatnonzero(dataset.test_labels == label)) for label in range(len(dataset.labels))
    }
    used: dict[int, int] = dict.fromkeys(queues, 0)
    skipped: list[dict[str, Any]] = []
    rounds: list[Attempts] = []
    wanted = dict.fromkeys(queues, FEWER_SOURCES.get(dataset.name, SOURCES))
    while wanted:
        sources = []
        for label, count in wanted.items():
            while count and queues[label]:
                index = int(queues[label].pop(0))
                if right[index]:
                    sources.append(index)
                    used[label], count = used[label] + 1, count - 1
                else:
                    reason = "misclassified unmodified by at least one model"
                    record = {"source_index": index, "source_label": dataset.labels[label], "reason": reason}
                    skipped.append(record)
        rounds.append(_attack_round(dataset, networks, attack, sources, len(rounds)))
        attempts = _joined(rounds)
        wanted = {}
        for label in queues:
            survivors = attempts.sources[
                attempts.survivors & (dataset.test_labels[attempts.sources] == label)
            ]
            if len(survivors) < ENOUGH_PAIRS or len(set(survivors)) < ENOUGH_SOURCES:
                if used[label] >= MOST_SOURCES or not queues[label]:
                    raise GenerateError(
                        f"label {dataset.labels[label]}: only {len(survivors)} pairs from {len(set(survivors))} of "
                        f"{used[label]} images fool every model; train for longer or take another seed"
                    )
                wanted[label] = 1
    return attempts, skipped


def _attack_round(
    dataset: Dataset, networks: dict[str, torch.nn.Module], attack: str, sources: Iterable[int], number: int
) -> Attempts:
    pairs = np.array(
        [
            (source, target)
            for source in sources
            for target in range(len(dataset.labels))
            if target != dataset.test_labels[source]
        ]
    ).reshape(-1, 2)
    function, parameters = ATTACKS[attack]
    attacked = {}
    for name, network in networks.items():
        further = f", further images {number}" if number else ""
        with tqdm(total=len(pairs), desc=f"{attack} on {name}{further}", unit="pair") as bar:
            attacked[name] = attack_pairs(
                network, dataset.test_images[pairs[:, 0]], pairs[:, 1], function, parameters, bar.update
            )
    return Attempts(pairs[:, 0], pairs[:, 1], attacked)


def attack_pairs(
    network: torch.nn.Module,
    images: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.int64],
    function: Callable[..., attacks.AttackResult],
    parameters: dict[str, Any],
    on_progress: Callable[[int], object],
) -> Attacked:
    """Attacks images (P, 1, H, W) towards targets (P,), rounds to 8 bits and asks the network again."""
    device = next(network.parameters()).device
    x = torch.from_numpy(to_float(images)).to(device)
    aim = torch.from_numpy(targets).to(device)
    result = function(network, x, aim, **parameters, on_progress=on_progress)
    pixels = np.rint(result.images.cpu().numpy() * 255).astype(np.uint8)
    stored = np.stack([pack.decode_png(pack.encode_png(image[0])) for image in pixels])[:, None]
    logits = train.predict(network, stored).double()
    return Attacked(
        pixels=stored,
        predictions=logits.argmax(1).numpy(),
        probabilities=logits.softmax(1).gather(1, torch.from_numpy(targets)[:, None])[:, 0].numpy(),
        iterations=result.iterations.cpu().numpy(),
        success=result.success.cpu().numpy(),
    )


def _joined(rounds: list[Attempts]) -> Attempts:
    def join(name: str, key: str) -> Any:
        return np.concatenate([getattr(attempts.attacked[name], key) for attempts in rounds])

    fields = ("pixels", "predictions", "probabilities", "iterations", "success")
    return Attempts(
        np.concatenate([attempts.sources for attempts in rounds]),
        np.concatenate([attempts.targets for attempts in rounds]),
        {name: Attacked(**{key: join(name, key) for key in fields}) for name in rounds[0].attacked},
    )


def assemble(
    dataset: Dataset, attempts: Attempts, right: npt.NDArray[np.bool_]
) -> tuple[dict[str, Any], list[bytes]]:
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

    clean = []
    for label in range(len(dataset.labels)):
        fresh = (dataset.test_labels == label) & right
        fresh[: attempts.sources[labels == label].max() + 1] = False
        clean += [unmodified(int(index)) for index in np.flatnonzero(fresh)[:CLEAN_IMAGES]]
    survivors = sorted({int(index) for index in attempts.sources[attempts.survivors]})
    manifest = {
        "labels": list(dataset.labels),
        "dataset": {
            "name": dataset.name,
            "source": dataset.source,
            "licence": dataset.licence,
            "files": dataset.files,
        },
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


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "reasonable-mistakes": importlib.metadata.version("reasonable-mistakes"),
    }


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
