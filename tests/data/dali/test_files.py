"""Which JPEGs are left to DALI's decoder."""

import pytest
from helpers.photographs import jpeg, odd_files
from PIL import Image

pytest.importorskip("nvidia.dali")

from delt_hpc.data.dali.files import plain_jpeg_size


def test_which_jpegs_are_plain() -> None:
    odd = odd_files()
    plain = {name for name, content in odd.items() if plain_jpeg_size(content)}
    expected = {name for name in odd if name.endswith(".jpg")} - {
        "cmyk.jpg",
        "rgb.jpg",
        "png inside.jpg",
        "gif inside.jpg",
    }
    assert plain == expected
    assert plain_jpeg_size(jpeg(90, 121)) == (90, 121)
    assert plain_jpeg_size(odd["exif.jpg"]) == (90, 120)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xc0\x00\x02",
        b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x00\x00\x10\x03",  # no height
        b"\xff\xd8\xff\xc9\x00\x0b\x08\x00\x10\x00\x10\x01\x01\x11\x00",  # arithmetic coding
        b"\xff\xd8\xff\xc1\x00\x0b\x0c\x00\x10\x00\x10\x01\x01\x11\x00",  # 12 bits
        b"\xff\xd8\xff\xda\x00\x0b\x08\x00\x10\x00\x10\x01\x01\x11\x00",  # a scan before any frame
    ],
)
def test_other_content_is_no_plain_jpeg(content: bytes) -> None:
    assert plain_jpeg_size(content) is None


def test_images_above_pils_size_limit_are_left_to_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain_jpeg_size(jpeg(90, 120)) == (90, 120)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90 * 120 - 1)
    assert plain_jpeg_size(jpeg(90, 120)) is None
