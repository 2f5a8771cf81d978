"""`python -m ml.pack verify DIR`: what a stimulus pack says, measured anew from its images, models and data.

Some things stay as stated:

- what only the making of the pack could tell: success rates before the filter, skipped sources, versions, its name;
  which pairs fooled every model but were left out; cells of grids that show no stimulus;
- that the attack made the stimuli: measured is whether it could have, in the iterations stated, for attacks that
  ml/reclassify.py knows (a gamma of JSMA that is larger than it was is not seen);
- that a model was trained as `training` says: this is compared with what the checkpoint says of itself;
- of a model whose checkpoint is not here: training, clean accuracy and its answers to the images; the seed, if no
  model was trained here;
- without --data-dir: where images and labels are from;
- keys that the format does not have, and files beside the manifest.

Without originals no change can be measured, and without PyTorch neither attack nor models are checked.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml import consistency, pack
from ml.consistency import Check, images
from ml.datasets import Dataset, DatasetError, load
from ml.pack import Pack, PackError, Pixels

SHOWN = 20  # differences; of the others only the number


@dataclass(frozen=True)
class Verified:
    """What `verify` found: the checks, for each model a line or two on its being asked again, and lines on what was
    checked in part or not at all."""

    checks: list[Check]
    models: list[str]
    all_models_asked: bool
    notes: list[str]

    @property
    def differences(self) -> list[str]:
        """One line for each difference."""
        return [line for check in self.checks for line in check.differences]


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Its exit status: 0 when all is right, 1 when anything differs, 2, with one line on stderr, where
    there is no pack to read."""
    parser = argparse.ArgumentParser(
        prog="python -m ml.pack", description="Stimulus packs; `verify --help` says more."
    )
    commands = parser.add_subparsers(metavar="COMMAND")
    command = commands.add_parser(
        "verify",
        help="measure a pack anew",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("directory", type=Path, metavar="DIR", help="the pack's folder")
    command.add_argument(
        "--checkpoints",
        type=Path,
        help="where the trained models are (default: checkpoints, if there is one)",
    )
    command.add_argument(
        "--data-dir", type=Path, help="folder with the data set's files, to compare the pack with them"
    )
    args = parser.parse_args(argv)
    if "directory" not in args:
        parser.print_help()
        return 0
    try:
        if args.checkpoints and not args.checkpoints.is_dir():
            raise PackError(f"{args.checkpoints}: no such folder of checkpoints")
        read = pack.read(args.directory)
        dataset = load(str(read.dataset.get("name")), args.data_dir) if args.data_dir else None
        verified = verify(read, args.checkpoints or Path("checkpoints"), dataset)
    except (PackError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(report(read, verified))
    return 1 if verified.differences else 0


def verify(read: Pack, checkpoints: Path, dataset: Dataset | None = None) -> Verified:
    """Checks a pack by itself, against `dataset` if given, and against those of its models whose checkpoints lie
    anywhere in the folder `checkpoints`."""
    hashes = dict.fromkeys([image.sha256 for image in images(read)] + list(read.grids.values()))
    pixels = {sha256: pack.decode_png(read.image(sha256)) for sha256 in hashes}
    checks = [check_files(read), *consistency.checks(read, pixels), check_seed(read)]
    notes = []
    if dataset:
        checks.append(check_dataset(read, pixels, dataset))
    else:
        notes.append("data set: no --data-dir given: not compared")
    try:
        from ml import reclassify
    except ModuleNotFoundError as error:  # a machine that only serves studies
        lines = [f"{model}: {error.name} is not installed: not re-classified" for model in read.models]
        return Verified(checks, lines, False, [*notes, f"attack: {error.name} is not installed: not checked"])
    possible = reclassify.possible(read, pixels)
    what = f"stimuli: as the attack {possible.attack} can make them"
    if possible.count or possible.differences:
        checks.append(Check(what, possible.count, possible.differences))
    asked = reclassify.ask(read, pixels, checkpoints, dataset)
    for answer in asked:
        if answer.complete or answer.differences:
            checks.append(Check(f"answers of {answer.model}", answer.count, answer.differences))
    models = [answer.summary for answer in asked]
    return Verified(checks, models, all(answer.complete for answer in asked), notes + possible.notes)


def check_files(read: Pack) -> Check:
    """Whether each file is an image of the pack; `read` has checked that each image is its pixels alone."""
    known = {image.sha256 for image in images(read)} | set(read.grids.values())
    present = {path.name for path in (read.directory / "images").iterdir()}
    differences = [
        f"{f'images/{name}'!r}: no record of the manifest names this file"
        for name in sorted(present - {f"{sha256}.png" for sha256 in known})
    ]
    return Check("image files: hash, 8-bit gray, nothing but pixels, none unnamed", len(known), differences)


def check_seed(read: Pack) -> Check:
    """Whether the pack's seed is that of each model trained here; what is said of its training is compared with its
    checkpoint elsewhere."""
    trainings = {record["name"]: record.get("training") for record in read.manifest["models"]}
    seeds = {
        model: training["seed"]
        for model, training in trainings.items()
        if isinstance(training, dict) and "seed" in training
    }
    stated = read.manifest.get("seed")
    differences = [
        f"{model}: was trained with seed {seed!r}, the pack's is {stated!r}"
        for model, seed in seeds.items()
        if type(seed) is not type(stated) or seed != stated  # false is not 0
    ]
    return Check("seed: that of each model trained here", len(seeds), differences)


def check_dataset(read: Pack, pixels: dict[str, Pixels], dataset: Dataset) -> Check:
    """Whether the unmodified images are the data set's, and its files, source, licence and note the manifest's."""
    differences = []
    if read.labels != dataset.labels:
        differences.append(f"labels {', '.join(read.labels)}, in the data set {', '.join(dataset.labels)}")
    stated = read.dataset.get("files")
    stated = stated if isinstance(stated, dict) else {}
    for name in sorted({*stated, *dataset.files}):
        there, here = stated.get(name), dataset.files.get(name)
        if there != here:
            differences.append(f"data set's file {name!r}: sha256 {there!r} in the manifest, {here!r} here")
    for key, stands in (("source", dataset.source), ("licence", dataset.licence), ("note", dataset.note)):
        said = read.dataset.get(key, "")
        if said != stands:
            differences.append(f"data set's {key}: {said!r} in the manifest, {stands!r} here")
    for image in read.unmodified:
        if image.source_index >= len(dataset.test_images):
            differences.append(f"{image}: there are only {len(dataset.test_images)} test images")
            continue
        label = dataset.labels[dataset.test_labels[image.source_index]]
        if label != image.source_label:
            differences.append(f"{image}: source_label {image.source_label}, in the data set {label}")
        if not np.array_equal(pixels[image.sha256][None], dataset.test_images[image.source_index]):
            differences.append(f"{image}: is not the data set's test image of this index")
    what = f"originals and clean images: as in the data set {dataset.name}"
    return Check(what, len(read.unmodified), differences)


def report(read: Pack, verified: Verified) -> str:
    """What was checked and what differs, in lines to read."""
    lines = [f"{read.directory}: {read.name}, pack_sha256 {read.pack_sha256}", ""]
    lines.append(f"{'checked':72}{'count':>7}{'differences':>13}")
    lines += [f"{c.what:72}{c.count:>7,}{len(c.differences):>13,}" for c in verified.checks]
    lines += ["", *verified.models, *verified.notes, ""]
    if differences := verified.differences:
        lines.append(f"{len(differences)} difference{'s' * (len(differences) > 1)}:")
        lines += [f"  {line}" for line in differences[:SHOWN]]
        if len(differences) > SHOWN:
            lines.append(f"  and {len(differences) - SHOWN} more")
    else:
        some = "" if verified.all_models_asked and not verified.notes else " that could be checked here"
        lines.append(f"Everything{some} is as the pack says.")
    return "\n".join(lines)
