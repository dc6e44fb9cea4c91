"""Decoding as ImageFolder does, resizing and cropping as torchvision does, exact normalisation and quantisation."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms as v1
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from delt_hpc.data.catalog.specs import SPECS, DatasetSpec, margin
from delt_hpc.data.random_crop import draw_window
from delt_hpc.data.transforms import (
    Augmentation,
    BadImageError,
    decode,
    evaluation,
    normalise,
    quantise,
    shuffle_patches,
    training,
)
from delt_hpc.keyed_random import uniforms

NOISE = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)
PHOTO = Image.fromarray(NOISE)


def spec_of(size: int, resize: int | None = None, mirror: bool = True) -> DatasetSpec:
    return replace(SPECS["imagenet-1k"], size=size, resize=resize or margin(size), mirror=mirror)


@pytest.fixture(scope="module")
def photos() -> dict[str, Image.Image]:
    china, flower = (Image.fromarray(photo) for photo in load_sample_images().images)
    return {
        "landscape": china,
        "portrait": flower.transpose(Image.Transpose.ROTATE_90),
        "256x301": china.resize((256, 301)),
        "301x256": flower.resize((301, 256)),
        "375x500": flower.resize((375, 500)),
        "500x375": china.resize((500, 375)),
        "square": china.resize((257, 257)),
        "tiny": flower.resize((5, 7)),
        "thin": china.resize((300, 9)),
    }


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (160, 176), (64, 72), (64, 64), (33, 40)])
def test_evaluation_is_torchvisions(size: int, resize: int, photos: dict[str, Image.Image]) -> None:
    transform = evaluation(spec_of(size, resize))
    for name, photo in photos.items():
        found = transform(photo)
        assert found.shape == (size, size, 3)
        assert found.dtype == np.uint8
        for module in (v1, v2):
            expected = module.Compose([module.Resize(resize), module.CenterCrop(size)])(photo)
            np.testing.assert_array_equal(found, np.asarray(expected), err_msg=f"{name}, {module.__name__}")


def save_exif_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees for display
    PHOTO.save(path, exif=exif)


def save_palette(path: Path) -> None:
    PHOTO.quantize(16).save(path, transparency=3)


ODD_FILES: dict[str, Callable[[Path], None]] = {
    "gray.png": PHOTO.convert("L").save,
    "gray.jpg": PHOTO.convert("L").save,
    "gray-alpha.png": PHOTO.convert("LA").save,
    "bits.png": PHOTO.convert("1").save,
    "16bit.png": Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257).save,
    "16bit.tiff": Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257).save,
    "float.tif": Image.fromarray(NOISE[..., 0].astype(np.float32)).save,
    "palette.png": save_palette,
    "palette.bmp": PHOTO.convert("P").save,
    "rgba.png": PHOTO.convert("RGBA").save,
    "rgba.webp": PHOTO.convert("RGBA").save,
    "cmyk.jpg": PHOTO.convert("CMYK").save,
    "cmyk.tif": PHOTO.convert("CMYK").save,
    "ycbcr.tif": PHOTO.convert("YCbCr").save,
    "photo.webp": PHOTO.save,
    "photo.bmp": PHOTO.save,
    "photo.ppm": PHOTO.save,
    "photo.pgm": PHOTO.convert("L").save,
    "png-named.jpg": lambda path: PHOTO.save(path, "PNG"),
    "rotated.jpg": save_exif_rotated,
}


@pytest.mark.parametrize("name", ODD_FILES)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_files_decode_as_imagefolder_decodes_them(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    ODD_FILES[name](path)
    found = decode(path)
    assert (found.mode, found.size) == ("RGB", PHOTO.size)  # also of the rotated one
    np.testing.assert_array_equal(np.asarray(found), np.asarray(default_loader(str(path))))


def encoded(kind: str) -> bytes:
    buffer = BytesIO()
    PHOTO.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.jpg", b""),
        ("text.jpg", b"no image at all\n" * 40),
        ("page.jpg", b"<!DOCTYPE html><html><body>404</body></html>"),
        ("cut.jpg", encoded("JPEG")[:-200]),
        ("header.jpg", encoded("JPEG")[:20]),
        ("cut.png", encoded("PNG")[:-200]),
        ("changed.png", encoded("PNG")[:200] + b"\xff\x00\xff" + encoded("PNG")[203:]),
        ("cut.webp", encoded("WEBP")[:-100]),
        ("cut.tif", encoded("TIFF")[:-300]),
        ("huge.ppm", b"P6 30000 30000 255\n"),
    ],
)
def test_an_unreadable_image_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadImageError, match=f"{name}: .") as caught:
        decode(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    for name, reason in (("gone.jpg", "No such file"), ("folder.jpg", "directory"), ("dangling.jpg", "No such file")):
        with pytest.raises(BadImageError, match=rf"{name}: .*{reason}"):
            decode(tmp_path / name)


@pytest.mark.parametrize("name", SPECS)
def test_quantising_inverts_normalising_for_all_values(name: str) -> None:
    spec = SPECS[name]
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(2, 16, 16, 3)
    normalised = normalise(pixels, spec)
    assert normalised.dtype == torch.float32
    assert normalised.shape == (2, 3, 16, 16)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(quantise(normalised, spec).numpy(), pixels.numpy())
    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
    expected = (pixels.permute(0, 3, 1, 2).double() / 255 - mean) / std
    torch.testing.assert_close(normalised.double(), expected, rtol=1e-6, atol=1e-6)


def test_channels_keep_their_order() -> None:
    pixels = torch.tensor([10, 100, 200], dtype=torch.uint8).expand(1, 4, 4, 3)
    found = quantise(normalise(pixels, SPECS["imagenet-1k"]), SPECS["imagenet-1k"]).numpy()
    np.testing.assert_array_equal(found, pixels.numpy())


def test_values_are_rounded_or_truncated_and_clamped() -> None:
    spec = replace(SPECS["digits"], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    values = [-3.0, 0.2, 0.8, 10.4, 10.6, 254.7, 255.0, 300.0]
    images = (torch.tensor(values) / 255).view(1, 1, 2, 4).expand(1, 3, 2, 4)
    rounded, truncated = quantise(images, spec), quantise(images, spec, truncate=True)
    assert rounded[0, :, :, 1].ravel().tolist() == [0, 0, 1, 10, 11, 255, 255, 255]
    assert truncated[0, :, :, 1].ravel().tolist() == [0, 0, 0, 10, 10, 254, 255, 255]
    assert rounded.shape == (1, 2, 4, 3)
    assert rounded.dtype == truncated.dtype == torch.uint8


@pytest.mark.parametrize("randaugment", [False, True])
def test_training_is_a_function_of_image_and_stream(randaugment: bool, photos: dict[str, Image.Image]) -> None:
    photo, transform = photos["375x500"], training(spec_of(48), Augmentation((0.25, 1.0), randaugment))
    before = photo.tobytes()
    outputs = [transform(photo, uniforms("stream", number)) for number in range(12)]
    assert all(pixels.shape == (48, 48, 3) and pixels.dtype == np.uint8 for pixels in outputs)
    for number, pixels in reversed(list(enumerate(outputs))):
        np.testing.assert_array_equal(transform(photo, uniforms("stream", number)), pixels)
    assert len({pixels.tobytes() for pixels in outputs}) == 12
    assert photo.tobytes() == before


def test_training_crops_as_torchvision_crops(photos: dict[str, Image.Image]) -> None:
    transform = training(spec_of(64, mirror=False), Augmentation((0.08, 1.0)))
    for name, photo in photos.items():
        for number in range(5):
            window = draw_window(uniforms("crop", number), photo.height, photo.width, (0.08, 1.0))
            expected = tv.resized_crop(photo, *window, [64, 64], antialias=True)
            found = transform(photo, uniforms("crop", number))
            np.testing.assert_array_equal(found, np.asarray(expected), err_msg=f"{name} {window}")


def test_images_are_mirrored_only_where_a_mirrored_image_keeps_its_class() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    square = Image.fromarray(pixels)  # a crop of the whole area is the image itself
    for mirror, least, most in ((True, 160, 240), (False, 0, 0)):
        transform = training(spec_of(16, mirror=mirror), Augmentation((1.0, 1.0)))
        found = [transform(square, uniforms("mirror", number)) for number in range(400)]
        mirrored = sum(np.array_equal(image, pixels[:, ::-1]) for image in found)
        plain = sum(np.array_equal(image, pixels) for image in found)
        assert least <= mirrored <= most
        assert plain + mirrored == 400


def test_shuffled_patches_permute_columns_and_then_rows() -> None:
    """Of 5 x 5 pixels the strips are 2 and 3 wide. Falling numbers swap two strips, rising ones keep them."""
    pixels = np.arange(25).reshape(5, 5, 1).repeat(3, axis=2).astype(np.uint8)
    swapped = shuffle_patches(pixels, 2, iter([0.9, 0.1, 0.2, 0.8]))[..., 0]
    np.testing.assert_array_equal(swapped, pixels[:, [2, 3, 4, 0, 1], 0])
    both = shuffle_patches(pixels, 2, iter([0.9, 0.1, 0.8, 0.2]))[..., 0]
    np.testing.assert_array_equal(both, swapped[[2, 3, 4, 0, 1]])


def test_patches_are_shuffled_before_the_crop(photos: dict[str, Image.Image]) -> None:
    photo, spec, numbers = photos["landscape"], spec_of(48), uniforms("shuffle")
    shuffled = Image.fromarray(shuffle_patches(np.asarray(photo), 3, numbers))
    expected = training(spec, Augmentation((0.5, 1.0)))(shuffled, numbers)
    found = training(spec, Augmentation((0.5, 1.0), strips=3))(photo, uniforms("shuffle"))
    np.testing.assert_array_equal(found, expected)


def test_transforms_can_be_pickled() -> None:
    spec = spec_of(16)
    fixed, random = evaluation(spec), training(spec, Augmentation((0.5, 1.0), True))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fixed))(PHOTO), fixed(PHOTO))
    copy = pickle.loads(pickle.dumps(random))
    np.testing.assert_array_equal(copy(PHOTO, uniforms("x")), random(PHOTO, uniforms("x")))
