"""Pixels as lossless PNGs, and pictures of many images in a grid."""

import io
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

from ml.untrusted import PackError

Pixels = npt.NDArray[np.uint8]

MAX_SIDE = 4096  # pixels
# A PNG of 8-bit gray is a little longer than its pixels at the most; all that it needs beside them is short.
MAX_PNG = 2 * MAX_SIDE * (MAX_SIDE + 1)  # bytes

_MAX_PIXELS = MAX_SIDE * MAX_SIDE
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY = bytes((8, 0, 0, 0, 0))  # of IHDR: depth, color type, compression, filter, interlace
_ANIMATION = (b"acTL", b"fcTL", b"fdAT")


def encode_png(pixels: Pixels) -> bytes:
    """A lossless 8-bit gray PNG of (H, W) pixels: the same pixels give the same bytes."""
    if pixels.dtype != np.uint8 or pixels.ndim != 2:
        raise ValueError(f"expected uint8 pixels (H, W), got {pixels.dtype} {pixels.shape}")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def decode_png(data: bytes) -> Pixels:
    """The (H, W) uint8 pixels of a lossless 8-bit gray PNG; raises PackError for anything else."""
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        if image.mode != "L":
            raise PackError(f"not an 8-bit gray PNG (mode {image.mode})")
        if image.width * image.height > _MAX_PIXELS:
            raise PackError(f"too large ({image.width} x {image.height} pixels)")
        return np.array(image, dtype=np.uint8)
    except PackError:
        raise
    except Exception as error:  # Pillow raises many kinds on broken bytes
        raise PackError(f"not a readable PNG ({error})") from None


def check_png(data: bytes) -> None:
    """Raises PackError unless a PNG is one header, 8-bit gray pixels and an end, all with their checksums.

    Everything else could show a browser other pixels than those measured (gamma, profiles, transparency, frames),
    tell whoever looks into the file what is hidden from participants (text), or unpack without end; no more is
    unpacked here than the header's pixels need.
    """
    if not data.startswith(_SIGNATURE):
        raise PackError("not a readable PNG (it begins otherwise)")
    position, kind = len(_SIGNATURE), b""
    width = height = 0
    compressed: list[bytes] = []
    while kind != b"IEND":
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if position + 12 > len(data) or end > len(data):
            raise PackError("not a readable PNG (it is cut short)")
        first, kind = not kind, data[position + 4 : position + 8]
        content = data[position + 8 : end - 4]
        if first != (kind == b"IHDR"):
            raise PackError("has two headers" if kind == b"IHDR" else "does not begin with a header")
        if data[end - 4 : end] != zlib.crc32(kind + content).to_bytes(4):
            raise PackError(f"the checksum of its chunk {kind.decode('latin-1')!r} is wrong")
        if kind == b"IHDR":
            width, height = _size(content, len(data))
        elif kind == b"IDAT":
            compressed.append(content)
        elif kind == b"IEND" and content:
            raise PackError(f"has {len(content)} bytes in its end")
        elif kind in _ANIMATION:
            raise PackError("is an animation")
        elif kind != b"IEND":
            raise PackError(f"has a chunk {kind.decode('latin-1')!r} beside its pixels")
        position = end
    if position < len(data):
        raise PackError(f"has {len(data) - position} bytes after its end")
    _check_stream(b"".join(compressed), height * (1 + width))  # a row: its filter, its pixels


def _size(header: bytes, length: int) -> tuple[int, int]:
    """Width and height of a PNG of `length` bytes."""
    if len(header) != 13:
        raise PackError(f"has a header of {len(header)} bytes")
    width, height = int.from_bytes(header[:4]), int.from_bytes(header[4:8])
    if header[8:] != _GRAY:
        raise PackError("is not 8-bit gray without interlacing")
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise PackError(f"is {width} x {height} pixels; 1 to {MAX_SIDE} are allowed each way")
    if length > 2 * height * (1 + width) + 1024:
        raise PackError(f"has {length:,} bytes, too many for {width} x {height} pixels")
    return width, height


def _check_stream(compressed: bytes, size: int) -> None:
    """Raises PackError where the pixels of a PNG are not one zlib stream of `size` bytes."""
    stream = zlib.decompressobj()
    try:
        # One byte more is asked for, as only that reads the stream's end.
        inflated = len(stream.decompress(compressed, size + 1))
    except zlib.error:
        raise PackError("its pixels are not one intact zlib stream") from None
    if inflated > size:
        raise PackError(f"its pixels inflate to more than their {size} bytes")
    if inflated < size or not stream.eof:
        raise PackError(f"its pixels inflate to {inflated} of {size} bytes, or have no end")
    if stream.unused_data:
        raise PackError(f"has {len(stream.unused_data)} bytes after its pixels, within their chunks")


def grid_pixels(cells: Pixels, gap: int = 1, ink: int = 96) -> Pixels:
    """One picture of (R, C, H, W) cells at native size, with `gap` pixels of gray between and around them."""
    rows, columns, height, width = cells.shape
    grid = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap), ink, dtype=np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = gap + row * (height + gap), gap + column * (width + gap)
            grid[top : top + height, left : left + width] = cells[row, column]
    return grid


def grid_cells(grid: Pixels, rows: int, columns: int, gap: int = 1) -> Pixels:
    """The cells (R, C, H, W) of a picture by `grid_pixels`; raises PackError if it cannot have that many."""
    height, width = ((size - gap) // n - gap for size, n in zip(grid.shape, (rows, columns), strict=True))
    if grid.shape != (rows * (height + gap) + gap, columns * (width + gap) + gap) or min(height, width) < 1:
        size = f"{grid.shape[1]} x {grid.shape[0]} pixels"
        raise PackError(f"{size} are no grid of {rows} x {columns} cells with lines of {gap} between")
    cells = grid[gap:, gap:].reshape(rows, height + gap, columns, width + gap)[:, :height, :, :width]
    return cells.swapaxes(1, 2)
