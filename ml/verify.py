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
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ml import pack
from ml.datasets import Dataset, DatasetError, load, to_float
from ml.pack import CleanImage, Pack, PackError, Pixels, Stimulus

ROUNDING = 1e-6  # l2 and linf have six decimals
SHOWN = 20  # differences; of the others only the number

_SIGNATURE = 8  # bytes
_CHUNKS = {b"IHDR", b"IDAT", b"IEND"}
_GRAY = bytes((8, 0, 0, 0, 0))  # of IHDR: depth, color type, compression, filter, interlace


@dataclass(frozen=True)
class Check:
    """What was checked, of how many, with one line for each difference found."""

    what: str
    count: int
    differences: list[str]


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
    pixels = {sha256: pack.decode_png(read.image(sha256)) for sha256 in {i.sha256 for i in images(read)}}
    checks = [
        check_files(read),
        check_pairs(read),
        check_unmodified(read),
        check_measurements(read, pixels),
        check_grids(read, pixels),
        check_seed(read),
    ]
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


def images(read: Pack) -> list[Stimulus | CleanImage]:
    """All images but the grids."""
    return [*read.stimuli, *read.unmodified]


def check_files(read: Pack) -> Check:
    """Whether each image's PNG is its pixels alone, without text or anything hidden, and each file is an image."""
    known = sorted({image.sha256 for image in images(read)} | set(read.grids.values()))
    differences = []
    for sha256 in known:
        differences += [f"images/{sha256}.png: {fault}" for fault in _png_faults(read.image(sha256))]
    present = {path.name for path in (read.directory / "images").iterdir()}
    for name in sorted(present - {f"{sha256}.png" for sha256 in known}):
        differences.append(f"{f'images/{name}'!r}: no record of the manifest names this file")
    return Check("image files: hash, 8-bit gray, nothing but pixels, none unnamed", len(known), differences)


def _png_faults(data: bytes) -> Iterator[str]:
    """What a PNG has beside one header, pixels and an end, all with their checksums."""
    position, kind = _SIGNATURE, b""
    headers: list[bytes] = []
    compressed: list[bytes] = []
    while position < len(data) and kind != b"IEND":
        end = position + 12 + int.from_bytes(data[position : position + 4])
        kind, content = data[position + 4 : position + 8], data[position + 4 : end - 4]
        if kind not in _CHUNKS:
            yield f"has a chunk {kind.decode('latin-1')!r} beside its pixels"
        if data[end - 4 : end] != zlib.crc32(content).to_bytes(4):
            yield f"the checksum of its chunk {kind.decode('latin-1')!r} is wrong"
        if kind == b"IHDR":
            headers.append(content[4:])
        elif kind == b"IDAT":
            compressed.append(content[4:])
        elif kind == b"IEND" and len(content) > 4:
            yield f"has {len(content) - 4} bytes in its end"
        position = end
    if kind != b"IEND":
        yield "has no end"
    elif position < len(data):
        yield f"has {len(data) - position} bytes after its end"
    if len(headers) != 1:
        yield f"has {len(headers)} headers"
    elif headers[0][8:] != _GRAY:
        yield "is not 8-bit gray without interlacing"
    else:
        width, height = int.from_bytes(headers[0][:4]), int.from_bytes(headers[0][4:8])
        yield from _stream_faults(b"".join(compressed), height * (1 + width))  # a row: its filter, its pixels


def _stream_faults(compressed: bytes, size: int) -> Iterator[str]:
    """Where the pixels of a PNG are not one zlib stream of `size` bytes; no more than these are inflated."""
    stream = zlib.decompressobj()
    try:
        # One byte more is asked for, as only that reads the stream's end.
        inflated = len(stream.decompress(compressed, size + 1))
    except zlib.error:
        yield "its pixels are not one intact zlib stream"
        return
    if inflated > size:
        yield f"its pixels inflate to more than their {size} bytes"
    elif inflated < size or not stream.eof:
        yield f"its pixels inflate to {inflated} of {size} bytes, or have no end"
    elif stream.unused_data:
        yield f"has {len(stream.unused_data)} bytes after its pixels, within their chunks"


def check_pairs(read: Pack) -> Check:
    """Whether each pair of source image and target has a stimulus for every model."""
    pairs: dict[tuple[int, str], set[str]] = {}
    for s in read.stimuli:
        pairs.setdefault((s.source_index, s.target_label), set()).add(s.model)
    differences = [
        f"{model}, source_index {source} to {target}: there is no stimulus"
        for (source, target), models in pairs.items()
        for model in read.models
        if model not in models
    ]
    return Check(f"pairs: a stimulus for each of {len(read.models)} models", len(pairs), differences)


def check_unmodified(read: Pack) -> Check:
    """Whether stimuli and unmodified images agree on their labels, each stimulus has its original and each original
    a stimulus, and no unmodified image comes twice. A pack may also be without originals."""
    differences = []
    labels = {image.source_index: image.source_label for image in images(read)}  # an original's counts
    for image in images(read):
        if image.source_label != labels[image.source_index]:
            differences.append(
                f"{image}: source_label {image.source_label}, elsewhere {labels[image.source_index]}"
            )
    sources = {s.source_index for s in read.stimuli}
    originals = {image.source_index for image in read.originals}
    if read.originals:
        differences += [f"source_index {index}: has no original" for index in sorted(sources - originals)]
    for index in sorted(originals - sources):
        differences.append(f"source_index {index}: is an original of no stimulus")
    for image in read.clean:
        if image.source_index in sources:
            differences.append(f"{image}: is clean, but the source of a stimulus")
    first: dict[str, CleanImage] = {}
    for image in read.unmodified:
        other = first.setdefault(image.sha256, image)
        if other is not image:
            differences.append(f"{image}: is the same image as source_index {other.source_index}")
    what = "originals and clean images: labels, originals of stimuli, none twice"
    return Check(what, len(read.unmodified), differences)


def check_measurements(read: Pack, pixels: dict[str, Pixels]) -> Check:
    """Whether each stimulus is as far from its original as its record says."""
    originals = {image.source_index: pixels[image.sha256] for image in read.originals}
    measurable = [s for s in read.stimuli if s.source_index in originals]
    differences = []
    for s in measurable:
        image, original = pixels[s.sha256], originals[s.source_index]
        change = to_float(image).astype(np.float64) - to_float(original)
        changed = int(np.count_nonzero(image != original))
        if changed != s.pixels_changed:
            differences.append(f"{s}: pixels_changed {s.pixels_changed}, measured {changed}")
        if changed == 0:
            differences.append(f"{s}: is its original, unchanged")
        distances = {"l2": float(np.linalg.norm(change)), "linf": float(np.abs(change).max())}
        for key, measured in distances.items():
            if abs(measured - getattr(s, key)) > ROUNDING:
                differences.append(f"{s}: {key} {getattr(s, key)}, measured {measured:.6f}")
    without = len(read.stimuli) - len(measurable)
    what = "stimuli: pixels_changed, l2, linf from the original"
    return Check(what + f" ({without} without one)" * (without > 0), len(measurable), differences)


def check_grids(read: Pack, pixels: dict[str, Pixels]) -> Check:
    """Whether the grids show the stimuli.

    A grid's row shows the first image of a label that was attacked. Where no pair of that image came into the pack,
    the pack cannot say what the row should be: it is passed over, but its diagonal must be one image in all grids,
    and none that the pack holds otherwise.
    """
    differences: list[str] = []
    grids = dict(_grids(read, next(iter(pixels.values())).shape, differences))
    first: dict[str, int] = {}
    for s in read.stimuli:
        first[s.source_label] = min(s.source_index, first.get(s.source_label, s.source_index))
    originals = {image.source_index: pixels[image.sha256].tobytes() for image in read.originals}
    held = {image.tobytes() for image in pixels.values()}
    stimuli = {(s.model, s.source_index, s.target_label): pixels[s.sha256] for s in read.stimuli}
    compared, passed_over = 0, 0
    for row, label in enumerate(read.labels):
        diagonal = {model: cells[row, row].tobytes() for model, cells in grids.items()}
        original = originals.get(first.get(label, -1))
        known = original in diagonal.values()
        right = original if known else next(iter(diagonal.values()), None)
        for model, shown in diagonal.items():
            if shown != right or (not known and shown in held):
                differences.append(f"grid of {model}, row {label}: the diagonal is not the original")
        if not known:
            passed_over += 1
            continue
        for model, cells in grids.items():
            compared += 1
            for column, target in enumerate(read.labels):
                stimulus = stimuli.get((model, first[label], target))
                compared += stimulus is not None
                if stimulus is not None and not np.array_equal(cells[row, column], stimulus):
                    differences.append(
                        f"grid of {model}, row {label}: the cell of {target} is not the stimulus"
                    )
    what = f"cells of {len(read.grids)} grids: as the images they show"
    return Check(what + f" (rows passed over: {passed_over})" * (passed_over > 0), compared, differences)


def _grids(read: Pack, size: tuple[int, ...], differences: list[str]) -> Iterator[tuple[str, Pixels]]:
    """The cells (K, K, H, W) of each grid by model; what is wrong with a whole grid is added to `differences`."""
    k = len(read.labels)
    for model, sha256 in read.grids.items():
        grid = pack.decode_png(read.image(sha256))
        try:
            cells = pack.grid_cells(grid, k, k)
        except PackError as error:
            differences.append(f"grid of {model}: {error}")
            continue
        if cells.shape[2:] != size:
            shape = f"{cells.shape[3]} x {cells.shape[2]}"
            differences.append(f"grid of {model}: cells {shape}, images {size[1]} x {size[0]} pixels")
            continue
        if not np.array_equal(pack.grid_pixels(cells), grid):
            differences.append(f"grid of {model}: the lines between its cells are not as they should be")
        yield model, cells


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
