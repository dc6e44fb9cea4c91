"""Files as DALI is given them: plain JPEGs as they are, everything else decoded by PIL, unreadable ones named.

DALI decodes a plain JPEG to the pixels PIL decodes it to. Other formats are rare in image data sets and full of corners
(palettes, transparency, 16 bits, CMYK) that the two treat differently, so of these PIL's pixels are handed on.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from delt_hpc.data.bad_files import BadFile
from delt_hpc.data.index import Index
from delt_hpc.data.transforms import BadImageError, Pixels, decode

# JPEG markers (ITU-T T.81, table B.1)
_START_OF_IMAGE, _START_OF_SCAN, _ADOBE = 0xD8, 0xDA, 0xEE
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


@dataclass(frozen=True, eq=False)
class ImageData:
    """An image for DALI.

    Attributes:
        content: a JPEG's bytes, or RGB pixels row by row; uint8 [n].
        height, width: pixels, not turned by EXIF.
        decoded: whether the content is pixels.
    """

    position: int
    content: np.ndarray
    height: int
    width: int
    decoded: bool


class Size(NamedTuple):
    height: int
    width: int


def plain_jpeg_size(content: bytes) -> Size | None:
    """Size of a JPEG that every decoder turns to the same RGB pixels; None for anything else.

    That is a Huffman-coded one of 8 bits, in gray or YCbCr, no larger than PIL takes.
    """
    if content[:2] != bytes((0xFF, _START_OF_IMAGE)):
        return None
    at, adobe_rgb = 2, False
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        body = content[at + 4 : at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")]
        if marker == _START_OF_SCAN or (marker in _FRAMES and marker not in _HUFFMAN_FRAMES):
            return None
        if marker == _ADOBE and body[:5] == b"Adobe" and len(body) >= 12:
            adobe_rgb = body[11] == 0
        if marker in _HUFFMAN_FRAMES:
            return _plain_frame_size(body, adobe_rgb)
        at += 4 + len(body)
    return None


def _plain_frame_size(body: bytes, adobe_rgb: bool) -> Size | None:
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        return None
    bits, components = body[0], body[5]
    size = Size(int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big"))
    limit = Image.MAX_IMAGE_PIXELS
    if bits != 8 or not 0 < size.height * size.width <= (limit or np.inf):
        return None
    names = body[6::3][:components]
    gray, colour = components == 1, components == 3 and not adobe_rgb and names != b"RGB"
    return size if gray or colour else None


class Files:
    """Reads the images of an index, from several threads at once.

    Args:
        index: which images there are.
        finish: pixels, uint8 [height, width, 3], of an image that PIL has decoded.
        keep_mib: memory for decoded images that will be asked for again, MiB; what no longer fits is read anew.
    """

    def __init__(self, index: Index, finish: Callable[[Image.Image], Pixels] = np.asarray, keep_mib: int = 0) -> None:
        self.index = index
        self._finish = finish
        self._kept: dict[int, ImageData] = {}
        self._left = keep_mib * 2**20
        self._lock = threading.Lock()

    def read(self, position: int) -> ImageData | BadFile:
        """The image at a position of the index."""
        if position in self._kept:
            return self._kept[position]
        path = self._path(position)
        try:
            content = path.read_bytes()
        except OSError as error:
            return self.bad(position, error.strerror or str(error))
        if not content:
            return self.bad(position, "is empty")
        size = plain_jpeg_size(content)
        if size is None or self._fits(size.height * size.width * 3):
            return self._keep(self.decoded(position))
        return ImageData(position, np.frombuffer(content, dtype=np.uint8), *size, decoded=False)

    def decoded(self, position: int) -> ImageData | BadFile:
        """The image as PIL decodes it."""
        path = self._path(position)
        try:
            pixels = self._finish(decode(path))
        except BadImageError as error:
            return self.bad(position, str(error).removeprefix(f"{path}: ").replace(f" {str(path)!r}", ""))
        height, width, _ = pixels.shape
        return ImageData(position, pixels.reshape(-1), height, width, decoded=True)

    def bad(self, position: int, reason: str) -> BadFile:
        return BadFile(position, self.index.paths[position], reason)

    def _path(self, position: int) -> Path:
        return self.index.root / self.index.paths[position]

    def _fits(self, size: int) -> bool:
        return size <= self._left

    def _keep(self, image: ImageData | BadFile) -> ImageData | BadFile:
        if isinstance(image, ImageData):
            with self._lock:
                if image.position not in self._kept and self._fits(image.content.size):
                    self._kept[image.position] = image
                    self._left -= image.content.size
        return image
