"""Packs from elsewhere: what is wrong with one is said in one line that names the file, and nothing else happens.

The pack is one of tests/packs.py. Whoever changes it makes its hashes right again, as an attacker would.
"""

import hashlib
import io
import json
import os
import shutil
import socket
import struct
import threading
import tracemalloc
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as options
from hypothesis import strategies as st
from PIL import Image

from ml import pack, pixels, untrusted
from ml.pack import PackError
from tests.ml.conftest import ROOT
from tests.packs import make_pack

LABELS = ("cat", "dog", "eel")
SIDE = 28


@dataclass
class Copy:
    """A copy of the pack to damage."""

    directory: Path
    manifest: dict[str, Any]

    @property
    def first(self) -> dict[str, Any]:
        """The first stimulus: of `undefended`, source 0, from cat to dog."""
        record: dict[str, Any] = self.manifest["stimuli"][0]
        return record

    def path(self, sha256: str) -> Path:
        return self.directory / "images" / f"{sha256}.png"

    def image(self, record: dict[str, Any]) -> pack.Pixels:
        return pack.decode_png(self.path(record["sha256"]).read_bytes())

    def add(self, data: bytes | pack.Pixels) -> str:
        """An image more; its hash."""
        png = data if isinstance(data, bytes) else pack.encode_png(data)
        sha256 = hashlib.sha256(png).hexdigest()
        self.path(sha256).write_bytes(png)
        return sha256

    def show(self, record: dict[str, Any], image: pack.Pixels) -> None:
        """Another image in a stimulus's place, with its numbers and the grid as they then are."""
        original = next(o for o in self.manifest["originals"] if o["source_index"] == record["source_index"])
        change = (image / 255 - self.image(original) / 255).ravel()
        record |= {
            "sha256": self.add(image),
            "pixels_changed": int(np.count_nonzero(change)),
            "l2": round(float(sum(change**2) ** 0.5), 6),
            "linf": round(float(max(abs(change))), 6),
        }
        grid = pack.decode_png(self.path(self.manifest["grids"][record["model"]]).read_bytes())
        row, column = (LABELS.index(record[key]) for key in ("source_label", "target_label"))
        top, left = (1 + n * (SIDE + 1) for n in (row, column))
        grid[top : top + SIDE, left : left + SIDE] = image
        self.manifest["grids"][record["model"]] = self.add(grid)

    def save(self) -> Path:
        rest = {key: value for key, value in self.manifest.items() if key != "pack_sha256"}
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        self.manifest["pack_sha256"] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        (self.directory / "manifest.json").write_text(json.dumps(self.manifest))
        return self.directory

    def refused(self) -> str:
        """The one line that reading says, after the folder's name."""
        return refusal(self.save())


def refusal(directory: Path) -> str:
    """What is said of a pack that cannot be read, after its folder's name."""
    with pytest.raises(PackError) as caught:
        pack.read_untrusted(directory)
    said = str(caught.value)
    assert said.startswith(str(directory))
    assert said.isprintable(), said
    assert len(said) < len(str(directory)) + 400
    return said.removeprefix(str(directory)).removeprefix("/")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> pack.Pack:
    return make_pack(tmp_path_factory.mktemp("made") / "pack", labels=LABELS, sources=1, targets=2, clean=2)


@pytest.fixture
def copy(made: pack.Pack, tmp_path: Path) -> Copy:
    shutil.copytree(made.directory, tmp_path / "pack")
    return Copy(tmp_path / "pack", json.loads((made.directory / "manifest.json").read_text()))


def test_what_is_right_is_read(made: pack.Pack, copy: Copy) -> None:
    assert vars(pack.read_untrusted(copy.save())) == {**vars(made), "directory": copy.directory}


@pytest.mark.parametrize("folder", sorted((ROOT / "stimuli").glob("*/")), ids=lambda path: path.name)
def test_the_bundled_packs_are_read(folder: Path) -> None:
    assert len(pack.read_untrusted(folder).stimuli) > 1000


# Where there is no pack


def test_a_place_where_no_pack_is_is_named(tmp_path: Path, made: pack.Pack) -> None:
    assert refusal(tmp_path / "nowhere") == ": there is no such folder"
    archive = tmp_path / "pack.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(made.directory / "manifest.json", "manifest.json")
    assert refusal(archive) == ": a ZIP archive; unpack it and name the folder with manifest.json"
    assert refusal(made.directory / "manifest.json").startswith(": not a folder; a pack is a folder with")
    assert refusal(tmp_path) == "manifest.json: cannot be read (No such file or directory)"
    assert refusal(archive / "pack") == ": cannot be read (Not a directory)"
    assert refusal(tmp_path / ("x" * 300)) == ": cannot be read (File name too long)"
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot be read (Too many levels" in refusal(tmp_path / "loop")


def test_what_may_not_be_read_is_named(copy: Copy) -> None:
    (copy.directory / "manifest.json").chmod(0)
    user = os.geteuid()
    if user == 0:  # who may read everything
        for folder in (copy.directory, *copy.directory.parents[:3]):
            folder.chmod(0o755)
        os.seteuid(65534)
    try:
        assert "cannot be read (Permission denied)" in refusal(copy.directory)
    finally:
        os.seteuid(user)


def test_a_link_to_a_whole_pack_is_followed(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy.directory)
    assert pack.read_untrusted(tmp_path / "link").name == "test-pack"


def at_once(call: Callable[[], str]) -> str:
    """What a call returns that must not wait for anything."""
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(call()), daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits"
    return said[0]


def little(call: Callable[[], str]) -> str:
    """What a call returns that must not take much memory."""
    tracemalloc.start()
    try:
        said = call()
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    return said


def link(path: Path, elsewhere: Path) -> None:
    shutil.copy(path, elsewhere)
    path.unlink()
    path.symlink_to(elsewhere)


def zeros(path: Path, _: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def pipe(path: Path, _: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def listening(path: Path, _: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as sock, pytest.MonkeyPatch.context() as here:
        here.chdir(path.parent)  # such names are short
        sock.bind(path.name)


def folder(path: Path, _: Path) -> None:
    path.unlink()
    path.mkdir()


def huge(path: Path, _: Path) -> None:
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("what", ["manifest", "image"])
@pytest.mark.parametrize(
    ("put", "complaint"),
    [
        (link, "is a link, not a file"),
        (zeros, "is a link, not a file"),
        (pipe, "is not a file"),
        (listening, "is not a file"),
        (folder, "is not a file"),
        (huge, "bytes"),
        (lambda path, _: path.unlink(), "cannot be read (No such file or directory)"),
    ],
    ids=["link", "link to a device", "pipe", "socket", "folder", "huge", "nothing"],
)
def test_what_is_no_plain_file_is_not_opened(
    put: Callable[[Path, Path], None], complaint: str, what: str, copy: Copy, tmp_path: Path
) -> None:
    copy.save()
    path = copy.directory / "manifest.json" if what == "manifest" else copy.path(copy.first["sha256"])
    put(path, tmp_path / "elsewhere")
    said = little(lambda: at_once(lambda: refusal(copy.directory)))
    assert said.startswith(str(path.relative_to(copy.directory)))
    assert complaint in said


def test_images_that_are_elsewhere_are_refused(copy: Copy, tmp_path: Path) -> None:
    (copy.directory / "images").rename(tmp_path / "elsewhere")
    (copy.directory / "images").symlink_to(tmp_path / "elsewhere")
    assert refusal(copy.directory) == "images: is a link, not a folder"


def test_a_file_that_becomes_another_while_it_is_read_is_refused(
    copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first look is at the file, the second at what was opened."""
    path = copy.directory / "manifest.json"
    lstat = Path.lstat
    for put, complaint in ((zeros, "Too many levels of symbolic links"), (pipe, "is not a file")):
        copy.save()

        def then(self: Path, put: Callable[[Path, Path], None] = put) -> os.stat_result:
            found = lstat(self)
            put(self, tmp_path)
            return found

        monkeypatch.setattr(Path, "lstat", then)
        assert complaint in at_once(lambda: refusal(copy.directory))
        monkeypatch.undo()
        path.unlink()


def test_an_image_that_changes_after_the_check_is_not_given_out(copy: Copy) -> None:
    read = pack.read_untrusted(copy.save())
    sha256 = copy.first["sha256"]
    copy.path(sha256).write_bytes(copy.path(copy.manifest["stimuli"][1]["sha256"]).read_bytes())
    with pytest.raises(PackError, match="does not have the sha256 in its name"):
        read.image(sha256)
    copy.path(sha256).unlink()
    copy.path(sha256).symlink_to("/dev/zero")
    with pytest.raises(PackError, match="is a link"):
        read.image(sha256)


def test_files_that_no_record_names_are_not_looked_at(copy: Copy) -> None:
    os.mkfifo(copy.directory / "images" / "pipe.png")
    (copy.directory / "images" / f"{'0' * 64}.png").symlink_to("/dev/zero")
    assert at_once(lambda: pack.read_untrusted(copy.save()).name) == "test-pack"


# The manifest's text

DEEP = 40


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b"", "not valid JSON (Expecting value: line 1 column 1 (char 0))"),
        (b"\xff\xfe{\0}\0", "not valid JSON (not in UTF-8)"),
        ("{}".encode("utf-16-be"), "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON (Unexpected UTF-8 BOM"),
        (b"[" * 100_000, "not valid JSON (nested too deeply)"),
        (b"[" * DEEP + b"]" * DEEP, "not valid JSON (nested too deeply)"),
        (b'{"a": ' * DEEP + b"1" + b"}" * DEEP, "not valid JSON (nested too deeply)"),
        (b'{"format": "stimulus-pack/1", "format": "x"}', "the key 'format' occurs twice in one object"),
        (b'{"a": [{"b": 1, "b": 1}]}', "the key 'b' occurs twice"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
        (b'{"a": 1e999}', "a number is too large"),
        (b'{"a": 18446744073709551616}', "more than 64 bits"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON (Exceeds the limit"),
        (b'{"a": "\\u0000"}', "a string has the character U+0000"),
        (b'{"a\\u0000": 1}', "a string has the character U+0000"),
        (b'{"a": "\\ud800"}', "a string has the character U+D800"),
        (b'{"a": "\\u001b[2J"}', "a string has the character U+001B"),
        ('{"a": "\u202egnp"}'.encode(), "a string has the character U+202E"),
        ('{"a": "\u2066"}'.encode(), "a string has the character U+2066"),
        (b'{"a": "' + b"x" * 10_001 + b'"}', "a string has more than 10,000 characters"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"{}", "format is None, expected 'stimulus-pack/1'"),
        (b'{"format": "stimulus-pack/2"}', "expected 'stimulus-pack/1'; another release of this program"),
        (b'{"format": ["' + b"x" * 9000 + b'"]}', "x..., expected 'stimulus-pack/1'"),
        (b'{"format": "stimulus-pack/1"}', "pack_sha256 is missing or not a string"),
        (b'{"format": "stimulus-pack/1", "pack_sha256": ""}', "pack_sha256 does not match"),
    ],
    ids=range(28),
)
def test_a_text_that_is_no_manifest_is_refused(text: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(text)
    said = refusal(tmp_path)
    assert said.startswith("manifest.json: ")
    assert complaint in said


def test_a_manifest_that_goes_up_to_the_bounds_is_read(copy: Copy) -> None:
    deep: Any = "x" * 10_000
    for _ in range(29):
        deep = [deep]
    odd = {
        "deep": deep,
        "most": 2**64 - 1,
        "least": -(2**64 - 1),
        "float": 1e308,
        "text": "a\tb\n\u00e9\U0001f600\u200f",
    }
    copy.manifest["versions"] = odd
    assert pack.read_untrusted(copy.save()).manifest["versions"] == odd


# What the manifest says


def change(*keys: str | int, to: object) -> Callable[[Copy], None]:
    def apply(copy: Copy) -> None:
        place: Any = copy.manifest
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = to

    return apply


def repeat(key: str, times: int) -> Callable[[Copy], None]:
    def apply(copy: Copy) -> None:
        copy.manifest[key] = copy.manifest[key] * times

    return apply


def without(key: str, place: int = -1) -> Callable[[Copy], None]:
    def apply(copy: Copy) -> None:
        del copy.manifest[key][place]

    return apply


def same(target: str) -> Callable[[Copy], None]:
    """A model's image for one target is shown for its other as well."""

    def apply(copy: Copy) -> None:
        one, other = (
            s
            for s in copy.manifest["stimuli"]
            if (s["model"], s["source_index"]) == (copy.first["model"], copy.first["source_index"])
        )
        copy.show(other, copy.image(one))

    return apply


def relabeled(*labels: object) -> Callable[[Copy], None]:
    return change("labels", to=list(labels))


CHANGES: dict[str, tuple[Callable[[Copy], None], str]] = {
    "the name of a pack is a path": (change("name", to="../x"), "the name '../x' is not letters"),
    "the name of a pack is two lines": (change("name", to="x\n"), "the name 'x\\n' is not letters"),
    "the name of a pack is too long": (change("name", to="x" * 101), "is not letters, digits"),
    "the name of a model is too long": (
        change("models", 0, "name", to="x" * 101),
        "the model's name 'xxxx",
    ),
    "models differ in case alone": (
        change("models", to=[{"name": "Distilled"}, {"name": "distilled"}]),
        "two models have one name",
    ),
    "too many models": (
        change("models", to=[{"name": f"m{i}"} for i in range(21)]),
        "a pack has 20 models at most, not 21",
    ),
    "a model without a name": (change("models", 2, to={}), "models[2]: name is missing"),
    "too many labels": (relabeled(*map(str, range(201))), "a pack has 200 labels at most, not 201"),
    "one label": (relabeled("cat"), "labels must be two or more different strings"),
    "the reserved answer": (relabeled(*LABELS, "none"), "a label cannot be 'none'"),
    "the reserved answer in capitals": (relabeled(*LABELS, "None"), "a label cannot be 'None'"),
    "the reserved answer in wide letters": (
        relabeled(*LABELS, "\uff4e\uff4f\uff4e\uff45"),
        "a label cannot be",
    ),
    "labels composed otherwise": (
        relabeled(*LABELS, "caf\u00e9", "cafe\u0301"),
        "different strings, that look different",
    ),
    "a label with nothing to see": (relabeled(*LABELS, "\u3164"), "labels must be strings to print"),
    "labels that look the same": (relabeled(*LABELS, "cat\u034f"), "that look different"),
    "a label that turns direction": (relabeled(*LABELS, "\u200fx"), "labels must be strings to print"),
    "a label with a space": (relabeled(*LABELS, " cat"), "labels have no spaces at their ends"),
    "a label of two lines": (relabeled(*LABELS, "a\nb"), "labels must be strings to print"),
    "a label that is a number": (relabeled(*LABELS, 7), "labels must be strings to print"),
    "a label off the list": (
        change("stimuli", 0, "target_label", to="cow"),
        "stimuli[0]: target_label 'cow' is not one of the pack's labels",
    ),
    "an original's label off the list": (
        change("originals", 1, "source_label", to="cow"),
        "originals[1]: source_label 'cow' is not one of",
    ),
    "a path for a hash": (
        change("stimuli", 3, "sha256", to="../../../../etc/passwd"),
        "stimuli[3]: sha256 '../../../../etc/passwd' is not a sha256",
    ),
    "a hash and a line": (change("stimuli", 3, "sha256", to="0" * 64 + "\n"), "is not a sha256"),
    "a hash in capitals": (change("grids", "distilled", to="A" * 64), "is not a sha256"),
    "a hash in other digits": (change("grids", "distilled", to="\u0661" * 64), "is not a sha256"),
    "a hash of no image": (
        change("grids", "distilled", to="0" * 64),
        f"images/{'0' * 64}.png: cannot be read (No such file",
    ),
    "an index that is true": (
        change("stimuli", 0, "source_index", to=True),
        "source_index is missing or not",
    ),
    "an index that is a fraction": (
        change("stimuli", 0, "source_index", to=0.0),
        "source_index is missing or",
    ),
    "an index below zero": (change("clean", 0, "source_index", to=-1), "clean[0]: source_index is missing"),
    "an index past the column": (change("clean", 0, "source_index", to=2**31), "clean[0]: source_index is"),
    "iterations past the column": (change("stimuli", 0, "iterations", to=2**31), "iterations is missing or"),
    "a probability above one": (change("stimuli", 0, "target_probability", to=1.01), "is not in [0, 1]"),
    "a probability that is true": (
        change("stimuli", 0, "target_probability", to=True),
        "is missing or not a",
    ),
    "a probability that another answer would have": (
        change("stimuli", 0, "target_probability", to=0.3),
        "target_probability 0.3 is not the largest of 3",
    ),
    "a cell twice": (repeat("stimuli", 2), "occur twice"),
    "an original twice": (repeat("originals", 2), "originals and clean name a source_index twice"),
    "no stimuli": (change("stimuli", to=[]), "the pack has no stimuli"),
    "stimuli that are an object": (change("stimuli", to={}), "stimuli is missing or not a list"),
    "a pair that one model lacks": (without("stimuli"), "there is no stimulus"),
    "an original that is missing": (without("originals"), "has no original"),
    "a grid that is missing": (change("grids", to={"undefended": "0" * 64}), "is missing or not a string"),
    "no grids": (change("grids", to={}), "grids is missing, empty or not an object"),
    "a grid of no model": (change("grids", "\x85" * 200, to="0" * 64), "a string has the character U+0085"),
    "a grid of no model, at length": (
        change("grids", "é" * 200, to="0" * 64),
        "which is not one of the pack's",
    ),
    "a label of its source": (
        change("originals", 0, "source_label", to="eel"),
        "source_label cat, elsewhere eel",
    ),
    "a wrong l2": (change("stimuli", 0, "l2", to=1.0), "l2 1.0, measured"),
    "a wrong linf": (change("stimuli", 0, "linf", to=0.5), "linf 0.5, measured"),
    "a wrong count of pixels": (
        change("stimuli", 0, "pixels_changed", to=39),
        "pixels_changed 39, measured 40",
    ),
    "the original unchanged": (
        lambda copy: copy.show(copy.first, copy.image(copy.manifest["originals"][0])),
        "is its original, unchanged",
    ),
    "another unmodified image": (
        lambda copy: copy.show(copy.first, copy.image(copy.manifest["clean"][1])),
        "is the image of source_index 5001 unmodified",
    ),
    "an image for two answers": (same("eel"), "the same image has the prediction dog elsewhere"),
    "a stimulus that the grid does not show": (
        lambda copy: change("grids", "distilled", to=copy.manifest["grids"]["undefended"])(copy),
        "grid of distilled, row cat: the cell of dog is not the stimulus",
    ),
    "a stimulus for a grid": (
        lambda copy: change("grids", "distilled", to=copy.first["sha256"])(copy),
        "grid of distilled: cells 8 x 8, images 28 x 28 pixels",
    ),
    "more successes than attempts": (
        change("models", 0, "success_rate_before_filter", to={"count": 13, "n": 12, "rate": 1.0}),
        "undefended: success_rate_before_filter: 13 of 12 are no counts",
    ),
    "fewer successes than pairs": (
        change("models", 0, "success_rate_before_filter", to={"count": 5, "n": 6, "rate": 0.833333}),
        "5 of 6 are fewer than the pack's 6 pairs",
    ),
    "a rate that the counts do not make": (
        change("models", 0, "success_rate_before_filter", to={"count": 12, "n": 15, "rate": 0.9}),
        "12 of 15 are not the rate 0.9",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_manifest_that_is_not_so_is_refused(what: str, copy: Copy) -> None:
    apply, complaint = CHANGES[what]
    apply(copy)
    said = copy.refused()
    assert said.startswith(("manifest.json: ", "images/"))
    assert complaint in said


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("pixels_changed", SIDE * SIDE + 1, "pixels_changed 785 of 784"),
        ("pixels_changed", 0, "pixels_changed 0 of 784"),
        ("linf", 1.01, "linf 1.01 is not in (0, 1]"),
        ("linf", 0, "linf 0.0 is not in (0, 1]"),
        ("l2", 7.0, "l2 7.0 does not go with linf"),
        ("l2", 0.1, "l2 0.1 does not go with linf"),
    ],
)
def test_without_originals_what_no_image_can_have_is_refused(
    key: str, value: float, complaint: str, copy: Copy
) -> None:
    del copy.manifest["originals"]
    assert pack.read_untrusted(copy.save()).originals == ()
    copy.first[key] = value
    assert complaint in copy.refused()


def test_upper_and_lower_case_may_be_two_labels(tmp_path: Path) -> None:
    letters = make_pack(tmp_path / "letters", "letters", labels=("a", "A", "É"), targets=2)
    assert pack.read_untrusted(letters.directory).labels == ("a", "A", unicodedata.normalize("NFC", "É"))


def test_all_images_together_are_bounded(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack, "_MAX_PIXELS", 20 * SIDE * SIDE)
    assert copy.refused() == f": the images have more than {20 * SIDE * SIDE:,} pixels together"


# PNGs


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(header: bytes, rows: bytes, *more: bytes) -> bytes:
    """A PNG with this header and these rows, compressed; `more` are chunks before its end."""
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), *more, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def header(width: int = SIDE, height: int = SIDE, rest: bytes = b"\x08\0\0\0\0") -> bytes:
    return struct.pack(">II", width, height) + rest


ROWS = (b"\0" + bytes(range(SIDE))) * SIDE
GOOD = png(header(), ROWS)
BEGINNING, END = GOOD[:33], GOOD[-12:]


def between(*chunks: bytes) -> bytes:
    """`GOOD` with chunks between its header and its pixels."""
    return BEGINNING + b"".join(chunks) + GOOD[33:]


def idat(*contents: bytes) -> bytes:
    """`GOOD` with other contents of IDAT, a chunk each."""
    return BEGINNING + b"".join(chunk(b"IDAT", content) for content in contents) + END


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((SIDE, SIDE), dtype=np.uint8)).save(buffer, format="JPEG")
    return buffer.getvalue()


TEXT = chunk(b"tEXt", b"Comment\0target: dog")
BOMB = zlib.compress(bytes(1 << 26))
PNGS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a readable PNG (it begins otherwise)"),
    "a JPEG": (jpeg(), "not a readable PNG (it begins otherwise)"),
    "a script": (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "not a readable PNG (it begins"),
    "a name alone": (GOOD[:8], "not a readable PNG (it is cut short)"),
    "cut in its pixels": (GOOD[:60], "not a readable PNG (it is cut short)"),
    "without an end": (GOOD[:-12], "not a readable PNG (it is cut short)"),
    "without the last byte": (GOOD[:-1], "not a readable PNG (it is cut short)"),
    "a chunk without end": (between(b"\xff\xff\xff\xffIDAT"), "not a readable PNG (it is cut short)"),
    "more after the end": (GOOD + b"target: dog", "has 11 bytes after its end"),
    "another PNG after the end": (GOOD + GOOD, f"has {len(GOOD)} bytes after its end"),
    "something in the end": (GOOD[:-12] + chunk(b"IEND", b"dog"), "has 3 bytes in its end"),
    "text": (between(TEXT), "has a chunk 'tEXt' beside its pixels"),
    "a bomb of text": (between(chunk(b"zTXt", b"x\0\0" + BOMB)), "bytes, too many for 28 x 28 pixels"),
    "a little compressed text": (between(chunk(b"zTXt", b"x\0\0")), "has a chunk 'zTXt' beside its pixels"),
    "a profile": (between(chunk(b"iCCP", b"x\0\0")), "has a chunk 'iCCP' beside its pixels"),
    "gamma": (between(chunk(b"gAMA", struct.pack(">I", 10_000))), "has a chunk 'gAMA' beside its pixels"),
    "transparency": (between(chunk(b"tRNS", b"\0\0")), "has a chunk 'tRNS' beside its pixels"),
    "a palette": (between(chunk(b"PLTE", bytes(3))), "has a chunk 'PLTE' beside its pixels"),
    "a chunk with an odd name": (between(chunk(b"\x1b[2J", b"")), "has a chunk '\\x1b[2J' beside its pixels"),
    "animation": (between(chunk(b"acTL", struct.pack(">II", 2, 0))), "is an animation"),
    "a frame": (GOOD[:-12] + chunk(b"fdAT", b"\0\0\0\1" + BOMB[:99]) + END, "is an animation"),
    "two headers": (between(BEGINNING[8:]), "has two headers"),
    "no header": (GOOD[:8] + GOOD[33:], "does not begin with a header"),
    "text before its header": (GOOD[:8] + TEXT + GOOD[8:], "does not begin with a header"),
    "a long header": (png(header() + b"\0", ROWS), "has a header of 14 bytes"),
    "a wrong checksum": (GOOD[:-16] + bytes(4) + END, "the checksum of its chunk 'IDAT' is wrong"),
    "a wrong checksum of the header": (GOOD[:29] + bytes(4) + GOOD[33:], "the checksum of its chunk 'IHDR'"),
    "interlaced": (png(header(rest=b"\x08\0\0\0\1"), ROWS), "is not 8-bit gray without interlacing"),
    "4 bits": (png(header(rest=b"\4\0\0\0\0"), ROWS), "is not 8-bit gray without interlacing"),
    "16 bits": (png(header(rest=b"\x10\0\0\0\0"), ROWS), "is not 8-bit gray without interlacing"),
    "colors": (png(header(rest=b"\x08\2\0\0\0"), ROWS), "is not 8-bit gray without interlacing"),
    "gray with alpha": (png(header(rest=b"\x08\4\0\0\0"), ROWS), "is not 8-bit gray without interlacing"),
    "no pixels": (png(header(0, 0), b""), "is 0 x 0 pixels; 1 to 4096 are allowed each way"),
    "a wide bomb": (png(header(2**31 - 1, 1), b""), "is 2147483647 x 1 pixels; 1 to 4096 are allowed"),
    "a high bomb": (png(header(1, 65536), bytes(131072)), "is 1 x 65536 pixels; 1 to 4096 are allowed"),
    "a bomb of pixels": (idat(BOMB[:1800]), "its pixels inflate to more than their 812 bytes"),
    "a long file": (idat(*[b""] * 300, zlib.compress(ROWS)), "bytes, too many for 28 x 28 pixels"),
    "more pixels": (png(header(), ROWS + b"!"), "its pixels inflate to more than their 812 bytes"),
    "fewer pixels": (png(header(), ROWS[:-1]), "its pixels inflate to 811 of 812 bytes"),
    "pixels without an end": (idat(zlib.compress(ROWS)[:-4]), "inflate to 812 of 812 bytes, or have no end"),
    "pixels with a wrong sum": (idat(zlib.compress(ROWS)[:-1] + b"?"), "are not one intact zlib stream"),
    "text after the pixels": (idat(zlib.compress(ROWS), b"target: dog"), "has 11 bytes after its pixels"),
    "no chunk of pixels": (BEGINNING + END, "its pixels inflate to 0 of 812 bytes"),
    "a filter that there is not": (png(header(), b"\x09" + ROWS[1:]), "not a readable PNG"),
    "another size": (png(header(SIDE, SIDE - 1), ROWS[: -SIDE - 1]), "28 x 27 pixels, the others 28 x 28"),
}


@pytest.mark.parametrize("what", PNGS)
@pytest.mark.parametrize("part", ["clean", "grid"])
def test_an_image_that_is_not_its_pixels_alone_is_refused(part: str, what: str, copy: Copy) -> None:
    data, complaint = PNGS[what]
    sha256 = copy.add(data)
    if part == "grid":
        copy.manifest["grids"]["distilled"] = sha256
    else:
        copy.manifest["clean"][1]["sha256"] = sha256
    said = little(copy.refused) if "bomb" in what else copy.refused()
    if what == "another size" and part == "grid":
        assert said.startswith("manifest.json: grid of distilled: 28 x 27 pixels are no grid")
        return
    assert said.startswith(f"images/{sha256}.png: ")
    assert complaint in said


def test_the_image_that_the_others_are_made_from_is_right() -> None:
    for data in (GOOD, idat(zlib.compress(ROWS)[:7], b"", zlib.compress(ROWS)[7:])):
        pixels.check_png(data)
        assert np.array_equal(pack.decode_png(data), decoded(data))
        assert np.array_equal(pack.decode_png(data)[3], range(SIDE))


def decoded(data: bytes) -> pack.Pixels:
    """The pixels of a PNG that is one header, pixels and an end, by the standard's text."""
    width, height = struct.unpack(">II", data[16:24])
    position, compressed = 33, b""
    while data[position + 4 : position + 8] == b"IDAT":
        (length,) = struct.unpack(">I", data[position : position + 4])
        compressed += data[position + 8 : position + 8 + length]
        position += 12 + length
    stream, above, rows = zlib.decompress(compressed), [0] * width, []
    for top in range(0, height * (1 + width), 1 + width):
        row: list[int] = []
        for x, byte in enumerate(stream[top + 1 : top + 1 + width]):
            a, b, c = row[x - 1] if x else 0, above[x], above[x - 1] if x else 0
            nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            row.append((byte + (0, a, b, (a + b) // 2, nearest)[stream[top]]) % 256)
        rows.append(row)
        above = row
    return np.array(rows, dtype=np.uint8)


# Whatever else there may be

edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat", "swap"]),
        st.integers(0, 1 << 20),
        st.integers(0, 1 << 20),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)
fuzzing = options(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def edited(data: bytes, changes: list[tuple[str, int, int, bytes]]) -> bytes:
    for kind, where, length, new in changes:
        at = where % (len(data) + 1)
        to = at + length % 64
        if kind == "flip":
            data = data[:at] + bytes(b ^ new[0] for b in data[at : at + 1]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[to:]
        elif kind == "insert":
            data = data[:at] + new + data[at:]
        elif kind == "repeat":
            data = data[:to] + data[at:]
        else:
            data = data[:at] + data[to:] + data[at:to]
    return data


@fuzzing
@given(changes=edits)
def test_a_changed_text_is_refused_or_says_the_same(
    changes: list[tuple[str, int, int, bytes]], made: pack.Pack, copy: Copy
) -> None:
    data = edited((made.directory / "manifest.json").read_bytes(), changes)
    (copy.directory / "manifest.json").write_bytes(data)
    read_or_refused(copy.directory, made)


@fuzzing
@given(changes=edits, which=st.integers(0, 1 << 20))
def test_a_changed_image_is_refused(
    changes: list[tuple[str, int, int, bytes]], which: int, made: pack.Pack, copy: Copy
) -> None:
    names = sorted(path.name for path in (made.directory / "images").iterdir())
    name = names[which % len(names)]
    data = (made.directory / "images" / name).read_bytes()
    (copy.directory / "images" / name).write_bytes(edited(data, changes))
    read_or_refused(copy.directory, made)
    (copy.directory / "images" / name).write_bytes(data)


def attempt(directory: Path) -> pack.Pack | None:
    """The pack, or None where it was refused with one short line that names a file of it."""
    try:
        return pack.read_untrusted(directory)
    except PackError as error:
        said = str(error)
    assert said.startswith(str(directory))
    assert said.isprintable()
    assert len(said) < len(str(directory)) + 400
    return None


def read_or_refused(directory: Path, made: pack.Pack) -> None:
    """The pack as it was, or none."""
    read = attempt(directory)
    assert read is None or vars(read) == {**vars(made), "directory": directory}


@fuzzing
@given(changes=edits)
def test_a_changed_png_with_its_checksums_right_is_refused_or_read_as_the_standard_says(
    changes: list[tuple[str, int, int, bytes]],
) -> None:
    """What is changed are the rows before they are compressed, the chunks' contents, or their order."""
    rows = edited(ROWS, changes)
    for data in (png(header(), rows), png(header(), rows[: len(ROWS)].ljust(len(ROWS), b"\0"))):
        accepted_is_right(data)
    parts = [b"IHDR" + header(), b"IDAT" + zlib.compress(ROWS), b"IEND"]
    for kind, where, _, new in changes:
        part = where % len(parts)
        parts[part] = parts[part][:4] + edited(parts[part][4:], [(kind, where, len(new), new)])
        if kind == "swap":
            parts.insert(0, parts.pop())
    accepted_is_right(GOOD[:8] + b"".join(chunk(part[:4], part[4:]) for part in parts))


def accepted_is_right(data: bytes) -> None:
    try:
        pixels.check_png(data)
        read = pack.decode_png(data)
    except PackError:
        return
    assert np.array_equal(read, decoded(data))


NASTY: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -0.0, 0.5, 1.5, 1e308, float("inf"), float("nan")),
    *(
        "",
        "0",
        "none",
        "cat",
        "dog",
        "a\0b",
        "\ud800",
        "\u202e",
        "../..",
        "/etc/passwd",
        "x" * 60,
        "x" * 20_000,
    ),
    *([], {}, [[]], [None], {"": None}, {"name": "x"}, {"count": 10**300, "n": 1.5, "rate": -1}),
]


@fuzzing
@given(data=st.data())
def test_a_changed_manifest_with_its_hash_right_is_refused_or_all_that_it_says_is_so(
    data: st.DataObject, made: pack.Pack, copy: Copy
) -> None:
    copy.manifest = json.loads((made.directory / "manifest.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = copy.manifest
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if not (isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 3))):
                break
            place = place[key]
        how = data.draw(st.sampled_from(["replace", "remove", "copy", "exchange"]))
        if how == "replace":
            place[key] = data.draw(st.sampled_from(NASTY))
        elif how == "remove":
            del place[key]
            if not place:
                break
        elif how == "copy" and isinstance(place, list):
            place.append(json.loads(json.dumps(place[key])))
        else:
            other = data.draw(st.sampled_from(keys))
            place[key], place[other] = place[other], place[key]
    read = attempt(copy.save())
    if read is not None:
        assert_so(read)


def assert_so(read: pack.Pack) -> None:
    """That a study could stand on this pack."""
    text = json.dumps(read.manifest, allow_nan=False, ensure_ascii=False)
    assert "\\u0000" not in text
    text.encode()
    cells = {(s.model, s.source_index, s.target_label) for s in read.stimuli}
    assert len(cells) == len(read.stimuli)
    assert cells == {(m, index, target) for _, index, target in cells for m in read.models}
    assert set(read.grids) == set(read.models)
    images = {s: pack.decode_png(read.image(s.sha256)) for s in read.stimuli}
    originals = {o.source_index: pack.decode_png(read.image(o.sha256)).astype(int) for o in read.originals}
    for s in read.stimuli:
        assert s.prediction == s.target_label != s.source_label
        assert {s.source_label, s.target_label} <= set(read.labels)
        assert 1 / len(read.labels) <= s.target_probability <= 1
        if read.originals:
            change = abs(images[s] - originals[s.source_index]) / 255
            assert s.pixels_changed == (change > 0).sum() > 0
            assert s.l2 == pytest.approx((change**2).sum() ** 0.5, abs=2e-6)
            assert s.linf == pytest.approx(change.max(), abs=2e-6)


def test_values_for_messages_are_one_short_line() -> None:
    for value in (["\n" * 500], {"a": "\u202e"}, "\ud800", 10**50):
        assert untrusted.shown(value).isprintable()
        assert len(untrusted.shown(value)) <= 103


def test_records_that_share_an_image_count_as_images(
    made: pack.Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every record is measured: a small pack of a large picture under many records would keep a server busy."""
    read = pack.read_untrusted(made.directory)
    size = pack.decode_png(read.image(read.stimuli[0].sha256)).size
    records = (len(read.stimuli) + len(read.unmodified)) * size
    grids = sum(pack.decode_png(read.image(sha256)).size for sha256 in set(read.grids.values()))
    monkeypatch.setattr(pack, "_MAX_PIXELS", records + grids)
    pack.read_untrusted(made.directory)
    for most in (records + grids - 1, records - 1):
        monkeypatch.setattr(pack, "_MAX_PIXELS", most)
        with pytest.raises(PackError, match=f"more than {most:,} pixels together"):
            pack.read_untrusted(made.directory)
