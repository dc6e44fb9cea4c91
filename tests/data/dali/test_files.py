"""DALI is given no JPEG that PIL cannot read: it may crash on them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delt_hpc.data.dali.files import Files, ImageData
from delt_hpc.data.index import Index
from delt_hpc.data.transforms import BadImageError, decode


def jpeg(progressive: bool = False) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "\xff\xda\xff\xd9"  # as a thumbnail has
    Image.fromarray(pixels).save(file, "JPEG", quality=80, progressive=progressive, exif=exif)
    return file.getvalue()


def given_to_dali(folder: Path, content: bytes, *, try_first: bool) -> bool:
    (folder / "image.jpg").write_bytes(content)
    read = Files(Index(folder, ("image.jpg",), np.zeros(1, np.int64)), try_first=try_first).read(0)
    return isinstance(read, ImageData) and not read.decoded


def pil_reads(path: Path) -> bool:
    try:
        decode(path)
    except BadImageError:
        return False
    return True


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("try_first", [False, True])
def test_whole_jpegs_stay_encoded(tmp_path: Path, progressive: bool, try_first: bool) -> None:
    assert given_to_dali(tmp_path, jpeg(progressive), try_first=try_first)
    assert given_to_dali(tmp_path, jpeg(progressive) + b"more", try_first=try_first)


@pytest.mark.parametrize("progressive", [False, True])
def test_no_truncated_jpeg_is_given_to_dali(tmp_path: Path, progressive: bool) -> None:
    content = jpeg(progressive)
    for size in [200, *range(0, len(content) - 2, 101), len(content) - 2]:
        assert not given_to_dali(tmp_path, content[:size], try_first=False), size


def test_pil_reads_every_jpeg_that_is_given_to_dali(tmp_path: Path) -> None:
    content, random = jpeg(), np.random.default_rng(1)
    read = 0
    for _ in range(400):
        changed = bytearray(content)
        for place in random.integers(0, 700, 3):
            changed[place] ^= 1 << random.integers(8)
        if given_to_dali(tmp_path, bytes(changed), try_first=True):
            assert pil_reads(tmp_path / "image.jpg")
            read += 1
    assert 0 < read < 400
