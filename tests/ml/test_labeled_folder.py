"""A researcher's own images: labels and order as they are named, the split, and everything that is refused."""

import hashlib
import io
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ml.datasets import DatasetError
from ml.labeled_folder import load_folder
from ml.pack import encode_png


def pixels(value: int, height: int = 6, width: int = 5) -> np.ndarray:
    picture = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    picture[0, 0] = value
    return picture


def put(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(pixels(value)))
    return path


def first_pixels(images: np.ndarray) -> list[int]:
    return [int(image[0, 0, 0]) for image in images]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two labels of 10 and 3 images; the first pixel is the number in the name."""
    for number in range(1, 11):
        put(tmp_path / "photos" / "cat" / f"{number}.png", number)
    for number in (7, 70, 100):
        put(tmp_path / "photos" / "Affe 10" / f"img{number}b.PNG", number)
    return tmp_path / "photos"


def test_without_a_split_all_images_are_test_images(folder: Path) -> None:
    dataset = load_folder(folder, split=False)
    assert dataset.labels == ("Affe 10", "cat")
    assert dataset.test_images.shape == (13, 1, 6, 5)
    assert dataset.test_images.dtype == np.uint8
    assert first_pixels(dataset.test_images) == [7, 70, 100, *range(1, 11)]
    assert np.array_equal(dataset.test_images[0, 0], pixels(7))
    assert dataset.test_labels.tolist() == [0] * 3 + [1] * 10
    assert dataset.train_images.shape == (0, 1, 6, 5)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.shape == (0,)
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int64
    assert (dataset.name, dataset.source, dataset.licence) == (
        "photos",
        "images of the folder photos",
        "unknown",
    )
    assert (dataset.note, dataset.contrast_normalized) == ("", False)
    assert len(dataset.files) == 13
    data = (folder / "cat" / "10.png").read_bytes()
    assert dataset.files["cat/10.png"] == hashlib.sha256(data).hexdigest()


def test_with_a_split_the_last_fifth_of_each_label_is_the_test_set(folder: Path) -> None:
    dataset = load_folder(folder, split=True)
    assert first_pixels(dataset.train_images) == [7, 70, *range(1, 9)]
    assert first_pixels(dataset.test_images) == [100, 9, 10]
    assert dataset.train_labels.tolist() == [0] * 2 + [1] * 8
    assert dataset.test_labels.tolist() == [0, 1, 1]
    assert dataset.files == load_folder(folder, split=False).files


def test_labels_are_in_natural_order(tmp_path: Path) -> None:
    for number, label in enumerate(["10", "9", "a10", "a9", "x", "Ähre"]):
        put(tmp_path / label / "1.png", number)
    assert load_folder(tmp_path, split=False).labels == ("9", "10", "a9", "a10", "x", "Ähre")


def test_hidden_files_and_notes_beside_the_labels_are_passed_over(folder: Path) -> None:
    before = load_folder(folder, split=True)
    for path in (folder / ".DS_Store", folder / "cat" / "._1.png", folder / "README.txt"):
        path.write_bytes(b"\0")
    put(folder / ".thumbnails" / "1.png")
    after = load_folder(folder, split=True)
    assert after.sha256 == before.sha256
    assert after.files == before.files
    assert after.labels == before.labels


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("photos of 2026", "photos-of-2026"),
        ("Möwen!", "M-wen"),
        ("_.-", "images"),
        ("猫", "images"),
        ("mnist", "mnist-images"),
        ("a" * 90, "a" * 80),
    ],
)
def test_the_name_is_safe_for_files_and_packs(name: str, safe: str, tmp_path: Path) -> None:
    for label in "ab":
        put(tmp_path / name / label / "1.png")
    dataset = load_folder(tmp_path / name, split=False)
    assert dataset.name == safe
    assert dataset.source == f"images of the folder {safe}"


def test_the_current_folder_has_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert load_folder(Path(), split=False).name == "photos"


def test_of_very_many_files_one_hash_tells(tmp_path: Path) -> None:
    image = encode_png(pixels(1, 1, 1))
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(501):
            (tmp_path / label / f"{number:03}.png").write_bytes(image)
    files = load_folder(tmp_path, split=False).files
    printed = subprocess.run(
        "sha256sum a/*.png b/*.png | sha256sum", shell=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert files == {"1,002 images": printed.stdout.split()[0]}


def refused(folder: Path, split: bool = False) -> str:
    with pytest.raises(DatasetError) as caught:
        load_folder(folder, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_folder_of_labels_is_refused(folder: Path, tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere") == (
        f"{tmp_path / 'nowhere'}: cannot be read as a folder (No such file or directory); name another"
    )
    assert "cat/1.png: cannot be read as a folder (Not a directory)" in refused(folder / "cat" / "1.png")
    assert "has 1 folders of images; make one for each label, two or more" in refused(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "has 0 folders of images" in refused(tmp_path / "empty")
    put(folder / "loose.png")
    assert (
        refused(folder) == f"{folder}/loose.png: lies in no label's folder; move it into the one of its label"
    )


@pytest.mark.parametrize("label", ["a" * 51, "a\tb", "two ", " ", "line\nbreak", "zero\u200bwidth"])
def test_labels_are_short_text_to_print(label: str, folder: Path) -> None:
    put(folder / label / "1.png")
    assert "a label is 1 to 50 characters to print" in refused(folder)


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        ("None", "a label cannot be 'None', which stands for the answer that none is plausible; rename the"),
        ("\u3164", "labels must be strings to print, and not empty; rename the folder"),
    ],
)
def test_what_no_pack_can_have_as_a_label_is_refused(label: str, complaint: str, folder: Path) -> None:
    put(folder / label / "1.png")
    assert complaint in refused(folder)


def test_more_labels_than_a_pack_can_have_are_refused(tmp_path: Path) -> None:
    for label in range(201):
        (tmp_path / str(label)).mkdir()
    assert "has 201 folders of images; a pack has 200 labels at most" in refused(tmp_path)


def test_a_label_of_50_characters_will_do(folder: Path) -> None:
    put(folder / ("x" * 50) / "1.png")
    assert load_folder(folder, split=False).labels[-1] == "x" * 50


def test_each_label_needs_images(folder: Path) -> None:
    (folder / "dog").mkdir()
    assert refused(folder) == f"{folder}/dog: has 0 images; put PNGs there, one or more"
    put(folder / "dog" / "1.png")
    assert len(load_folder(folder, split=False).test_images) == 14
    assert refused(folder, split=True) == (
        f"{folder}/dog: has 1 images; put PNGs there, one to train on and one to test with"
    )
    put(folder / "dog" / "2.png")
    assert load_folder(folder, split=True).test_labels.tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize("name", ["3.jpg", "notes.txt", "deeper/1.png", "a\nb.png"])
def test_a_labels_folder_holds_images_alone(name: str, folder: Path) -> None:
    put(folder / "cat" / name)
    assert "not a PNG file; a label's folder holds its images alone: convert it" in refused(folder)


def test_images_are_of_one_size(folder: Path) -> None:
    path = folder / "cat" / "4.png"
    path.write_bytes(encode_png(pixels(4, 5, 6)))
    assert refused(folder) == (
        f"{path}: 6 x 5 pixels where {folder}/Affe 10/img7b.PNG has 5 x 6; bring all images to one size"
    )


def test_an_image_that_may_not_be_read_is_named(folder: Path) -> None:
    path = folder / "cat" / "4.png"
    path.unlink()
    path.symlink_to(folder / "nowhere.png")
    assert str(path) in refused(folder)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def header(width: int = 5, height: int = 6, depth: int = 8, color: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))


ROWS = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + bytes(row) for row in pixels(4))))


def saved(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def bad_image(kind: str) -> bytes:
    gray = Image.fromarray(pixels(4))
    good = png(header(), ROWS)
    return {
        "empty": b"",
        "text": b"<svg/>" * 20,
        "jpeg": _jpeg(gray),
        "header alone": good[:20],
        "cut in the pixels": good[:60],
        "without its end": good[:-12],
        "end cut": good[:-5],
        "flipped": good[:50] + bytes([good[50] ^ 4]) + good[51:],
        "wrong checksum": good[:-17] + bytes([good[-17] ^ 1]) + good[-16:],
        "RGB": saved(gray.convert("RGB")),
        "RGBA": saved(gray.convert("RGBA")),
        "palette": saved(gray.convert("P")),
        "gray and alpha": saved(gray.convert("LA")),
        "1 bit": saved(gray.convert("1")),
        "4 bit": png(header(depth=4), chunk(b"IDAT", zlib.compress(b"\0\0\0\0" * 6))),
        "16 bit": saved(Image.fromarray(pixels(4).astype(np.uint16) * 256)),
        "transparent": saved(gray, transparency=0),
        "animated": saved(gray, save_all=True, append_images=[Image.fromarray(pixels(5))]),
        "bomb": png(header(60000, 60000), chunk(b"IDAT", zlib.compress(bytes(1 << 20)))),
        "wide bomb": png(header(10_000, 10_000), chunk(b"IDAT", zlib.compress(bytes(1 << 20)))),
        "no width": png(header(width=0), ROWS),
    }[kind]


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG")
    return buffer.getvalue()


def test_the_hand_made_image_is_good(folder: Path) -> None:
    (folder / "cat" / "4.png").write_bytes(png(header(), ROWS))
    assert np.array_equal(load_folder(folder, split=False).test_images[6, 0], pixels(4))


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("empty", "not a readable PNG"),
        ("text", "not a readable PNG"),
        ("jpeg", "not a readable PNG"),
        ("header alone", "not a readable PNG"),
        ("cut in the pixels", "not a readable PNG"),
        ("without its end", "not a readable PNG"),
        ("end cut", "not a readable PNG"),
        ("flipped", "not a readable PNG"),
        ("wrong checksum", "not a readable PNG"),
        ("RGB", "not an 8-bit gray PNG (bit depth 8, color type 2)"),
        ("RGBA", "not an 8-bit gray PNG (bit depth 8, color type 6)"),
        ("palette", "not an 8-bit gray PNG (bit depth 8, color type 3)"),
        ("gray and alpha", "not an 8-bit gray PNG (bit depth 8, color type 4)"),
        ("1 bit", "not an 8-bit gray PNG (bit depth 1, color type 0)"),
        ("4 bit", "not an 8-bit gray PNG (bit depth 4, color type 0)"),
        ("16 bit", "not an 8-bit gray PNG (bit depth 16, color type 0)"),
        ("transparent", "has transparency"),
        ("animated", "an animation"),
        ("bomb", "too large (60000 x 60000 pixels)"),
        ("wide bomb", "too large (10000 x 10000 pixels)"),
        ("no width", "not a readable PNG"),
    ],
)
def test_an_image_that_is_not_8_bit_gray_is_named_with_the_remedy(
    kind: str, complaint: str, folder: Path
) -> None:
    path = folder / "cat" / "4.png"
    path.write_bytes(bad_image(kind))
    message = refused(folder)
    assert message.startswith(f"{path}: {complaint}")
    assert message.endswith("; save it as an 8-bit gray PNG without transparency or animation, or remove it")


def test_a_file_too_large_to_be_such_an_image_is_not_read(folder: Path) -> None:
    with (folder / "cat" / "4.png").open("wb") as file:
        file.truncate(1 << 36)  # sparse: it takes no room
    assert "larger than 33,554,432 bytes" in refused(folder)
