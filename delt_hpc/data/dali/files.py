"""Reading of image files for DALI: plain JPEGs stay encoded, PIL decodes everything else.

DALI decodes a plain JPEG to the same pixels as PIL. The two treat special cases of other formats differently (palettes,
transparency, 16 bits, CMYK), and these are rare in image data sets, so DALI is given PIL's pixels for them.
"""

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from delt_hpc.data.bad_files import BadFile
from delt_hpc.data.index import Index
from delt_hpc.data.transforms import BAD_IMAGE, BadImageError, Pixels, decode

# JPEG markers (ITU-T T.81, table B.1)
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN, _ADOBE = 0xD8, 0xD9, 0xDA, 0xEE
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


@dataclass(frozen=True, eq=False)
class ImageData:
    """An image to feed to DALI.

    Attributes:
        content: a JPEG's bytes, or RGB pixels row by row; uint8 [n].
        height, width: in pixels, before any EXIF rotation.
        decoded: whether `content` is pixels.
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
    """Size of a JPEG that every decoder decodes to the same RGB pixels; None for anything else.

    Such a JPEG is Huffman-coded and complete, has 8 bits in gray or YCbCr, and is not larger than PIL's limit.
    """
    if content[:2] != bytes((0xFF, _START_OF_IMAGE)):
        return None
    offset, adobe_rgb = 2, False
    while offset + 4 <= len(content) and content[offset] == 0xFF:
        marker = content[offset + 1]
        if marker == 0xFF or marker in _WITHOUT_LENGTH:
            offset += 1 if marker == 0xFF else 2
            continue
        length = int.from_bytes(content[offset + 2 : offset + 4], "big")
        body = content[offset + 4 : offset + 2 + length]
        if marker == _START_OF_SCAN or (marker in _FRAMES and marker not in _HUFFMAN_FRAMES):
            return None
        if marker == _ADOBE and body[:5] == b"Adobe" and len(body) >= 12:
            adobe_rgb = body[11] == 0
        if marker in _HUFFMAN_FRAMES:
            return _plain_frame_size(body, adobe_rgb) if _has_whole_scan(content, offset) else None
        offset += 4 + len(body)
    return None


def _has_whole_scan(content: bytes, frame: int) -> bool:
    """Whether the frame is followed by a scan and the end of the image. DALI may crash where they are cut off."""
    scan = content.find(bytes((0xFF, _START_OF_SCAN)), frame)
    return scan >= 0 and content.rfind(bytes((0xFF, _END_OF_IMAGE))) > scan


def _pil_decodes(content: bytes) -> bool:
    """Whether PIL decodes a JPEG, at an eighth of its size: all of its data are read, in less than half the time."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft(None, (1, 1))
            image.load()
    except BAD_IMAGE:
        return False
    return True


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
    """Thread-safe reader of the images of an index.

    Args:
        transform: applied to images that PIL decodes; returns uint8 [height, width, 3].
        cache_mib: memory for decoded images, MiB; images that do not fit are read again each time.
        try_first: let PIL try every JPEG, so that DALI is given none that PIL cannot read.
    """

    def __init__(
        self,
        index: Index,
        transform: Callable[[Image.Image], Pixels] = np.asarray,
        cache_mib: int = 0,
        *,
        try_first: bool = False,
    ) -> None:
        self.index, self._try_first = index, try_first
        self._tried: set[int] = set()
        self._transform = transform
        self._cache: dict[int, ImageData] = {}
        self._free_bytes = cache_mib * 2**20
        self._lock = threading.Lock()

    def read(self, position: int) -> ImageData | BadFile:
        """The image at a position of the index."""
        if position in self._cache:
            return self._cache[position]
        path = self._path(position)
        try:
            content = path.read_bytes()
        except OSError as error:
            return self.bad(position, error.strerror or str(error))
        if not content:
            return self.bad(position, "is empty")
        size = plain_jpeg_size(content)
        if size is None or self._fits(size.height * size.width * 3) or not self._is_readable(position, content):
            return self._cached(self.decoded(position))
        return ImageData(position, np.frombuffer(content, dtype=np.uint8), *size, decoded=False)

    def decoded(self, position: int) -> ImageData | BadFile:
        """The image decoded by PIL."""
        path = self._path(position)
        try:
            pixels = self._transform(decode(path))
        except BadImageError as error:
            return self.bad(position, str(error).removeprefix(f"{path}: ").replace(f" {str(path)!r}", ""))
        height, width, _ = pixels.shape
        return ImageData(position, pixels.reshape(-1), height, width, decoded=True)

    def bad(self, position: int, reason: str) -> BadFile:
        return BadFile(position, self.index.paths[position], reason)

    def _is_readable(self, position: int, content: bytes) -> bool:
        """Whether PIL decodes the JPEG; each file is tried once, and only if `try_first`."""
        if self._try_first and position not in self._tried:
            if not _pil_decodes(content):
                return False
            self._tried.add(position)
        return True

    def _path(self, position: int) -> Path:
        return self.index.root / self.index.paths[position]

    def _fits(self, size: int) -> bool:
        return size <= self._free_bytes

    def _cached(self, image: ImageData | BadFile) -> ImageData | BadFile:
        """The image itself, cached if it fits."""
        if isinstance(image, ImageData):
            with self._lock:
                if image.position not in self._cache and self._fits(image.content.size):
                    self._cache[image.position] = image
                    self._free_bytes -= image.content.size
        return image
