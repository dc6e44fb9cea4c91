"""DALI's training images against the PIL loader's with the same random draws, and the images of an epoch."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.photographs import denormalised, encoded, jpeg, no_batches, operator_devices, photograph, write_files
from PIL import Image
from PIL.Image import Resampling

pytest.importorskip("nvidia.dali")

from nvidia.dali import fn, pipeline_def, types

from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog.specs import SPECS, DatasetSpec
from delt_hpc.data.dali.files import Files
from delt_hpc.data.dali.pipeline import PipelineSpec, make_pipeline
from delt_hpc.data.dali.randaugment import randaugment, step_arguments
from delt_hpc.data.dali.training import (
    Augmentation,
    Draw,
    TrainingBatch,
    draw,
    draw_arguments,
    training_batches,
    training_graph,
)
from delt_hpc.data.index import Index
from delt_hpc.data.randaugment import NAMES, OPERATIONS, Step
from delt_hpc.data.random_crop import Window
from delt_hpc.data.transforms import training
from delt_hpc.errors import UserError
from delt_hpc.keyed_random import uniforms

CPU = torch.device("cpu")
SPEC = replace(SPECS["imagenet-1k"], size=64, resize=73)
SCALE = (0.25, 1.0)
PLAIN, FULL = Augmentation(SCALE, randaugment=False), Augmentation(SCALE, randaugment=True)
WARPS = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
COUNT = 23


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Portrait and landscape photographs, smaller and larger than the crop; one is not a JPEG."""
    files = {
        f"{number:02d}.jpg": encoded(photograph(50 + 13 * number, 330 - 11 * number, number % 2), "JPEG", quality=92)
        for number in range(COUNT - 1)
    }
    return write_files(
        tmp_path_factory.mktemp("photographs"), files | {"palette.png": encoded(photograph(80, 70).convert("P"), "PNG")}
    )


def epochs(
    index: Index,
    augmentation: Augmentation = FULL,
    *,
    spec: DatasetSpec = SPEC,
    batch_size: int = 8,
    last: int = 1,
    threads: int = 2,
    cache_mib: int = 0,
    key: tuple[int | str, ...] = (3, "train"),
    device: torch.device = CPU,
) -> list[TrainingBatch]:
    return list(
        training_batches(
            index,
            np.arange(len(index)),
            spec,
            batch_size,
            range(last),
            augmentation=augmentation,
            key=key,
            device=device,
            threads=threads,
            bad=BadFiles(),
            cache_mib=cache_mib,
        )
    )


def in_order(batches: Sequence[TrainingBatch], epoch: int = 0) -> torch.Tensor:
    """The images of an epoch by position."""
    chosen = [batch for batch in batches if batch.epoch == epoch]
    order = np.argsort(np.concatenate([batch.positions for batch in chosen]))
    return torch.cat([batch.images for batch in chosen])[torch.from_numpy(order)]


@pytest.mark.parametrize("size", [224, 160, 64])
def test_windows_and_mirroring_are_the_pil_loaders(size: int, photographs: Index) -> None:
    spec = replace(SPEC, size=size)
    found = denormalised(in_order(epochs(photographs, PLAIN, spec=spec)), spec)
    transform = training(spec, Augmentation(SCALE))
    for position, path in enumerate(photographs.paths):
        image = Image.open(photographs.root / path).convert("RGB")
        expected = transform(image, uniforms(3, "train", "augment", 0, position)).astype(float)
        assert np.abs(found[position] - expected).max() < 1.001, path


def test_windows_have_torchvisions_distribution() -> None:
    """Areas and log ratios are uniform, and half of the images are mirrored."""
    stream = uniforms("windows")
    drawn = [draw(SPEC, Augmentation((0.25, 0.5), False), 1000, 1000, stream) for _ in range(4000)]
    areas = np.sort([drawn.window.height * drawn.window.width / 1e6 for drawn in drawn])
    ratios = np.sort([np.log(drawn.window.width / drawn.window.height) for drawn in drawn])
    even = (np.arange(4000) + 0.5) / 4000
    limit = 1.63 / 4000**0.5  # Kolmogorov's one per cent quantile
    assert np.abs((areas - 0.25) / 0.25 - even).max() < limit
    assert np.abs((ratios / np.log(4 / 3) + 1) / 2 - even).max() < limit
    assert abs(sum(drawn.mirrored for drawn in drawn) - 2000) < 2.58 * 1000**0.5


def test_digits_are_not_mirrored(photographs: Index) -> None:
    stream = uniforms("mirror")
    drawn = [draw(replace(SPEC, mirror=False), PLAIN, 90, 80, stream) for _ in range(50)]
    assert not any(augmentation.mirrored for augmentation in drawn)
    assert any(draw(SPEC, PLAIN, 90, 80, uniforms("mirror", key)).mirrored for key in range(50))


@pytest.mark.parametrize("batch_size", [1, 8, 11, 22, 64])
def test_every_image_is_delivered_once_an_epoch(batch_size: int, photographs: Index) -> None:
    batches = epochs(photographs, PLAIN, batch_size=batch_size, last=3)
    seen = [
        np.concatenate([batch.positions for batch in group]).tolist()
        for _, group in itertools.groupby(batches, key=lambda batch: batch.epoch)
    ]
    assert [sorted(epoch) for epoch in seen] == [list(range(COUNT))] * 3
    assert len({tuple(epoch) for epoch in seen}) == 3
    assert all(len(batch.images) == len(batch.positions) for batch in batches)


def test_images_depend_on_the_key_alone(photographs: Index) -> None:
    """Threads, batch size, earlier epochs and caching do not change an image."""
    first = epochs(photographs, last=2)
    expected = in_order(first, 1)
    for other in (
        epochs(photographs, last=2, threads=5),
        epochs(photographs, last=2, batch_size=5),
        epochs(photographs, last=3),
        epochs(photographs, last=2, cache_mib=64),
        epochs(photographs, last=2, cache_mib=1),
    ):
        assert torch.equal(in_order(other, 1), expected)
    assert not torch.equal(in_order(first, 0), expected)
    assert not torch.equal(in_order(epochs(photographs, last=2, key=(4, "train")), 1), expected)


def test_cached_images_are_read_once(photographs: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read_bytes = Path.read_bytes

    def counted(path: Path) -> bytes:
        reads.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    epochs(photographs, PLAIN, last=3, cache_mib=64)
    assert len(reads) == COUNT
    sizes = [Image.open(photographs.root / path).size for path in photographs.paths]
    assert 1 < sum(width * height * 3 for width, height in sizes) / 2**20 < 64
    reads.clear()
    epochs(photographs, PLAIN, last=3, cache_mib=1)
    assert COUNT < len(reads) < 3 * COUNT


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    index = write_files(tmp_path, {"a.jpg": jpeg(), "b.jpg": jpeg()[:-300], "c.jpg": jpeg(70, 60)})
    with pytest.raises(UserError, match=r"b\.jpg: .*truncated"):
        epochs(index)


def augmented(images: Sequence[np.ndarray], variants: Sequence[Sequence[Step]]) -> np.ndarray:
    """Each image under each sequence of steps, by DALI: uint8 [images, variants, S, S, 3]."""
    size = len(images[0])
    arguments = [np.stack(arrays) for arrays in zip(*(step_arguments(steps, size) for steps in variants), strict=True)]

    def source() -> Any:
        for image in images:
            yield np.stack([image] * len(variants)), *arguments

    def graph() -> Any:
        image, *drawn = fn.external_source(
            source(),
            num_outputs=4,
            dtype=[types.UINT8, types.INT32, types.FLOAT, types.FLOAT],
            ndim=[3, 1, 1, 3],
            layout=["HWC"],
        )
        return randaugment(image, "cpu", size, *drawn)

    pipeline = pipeline_def(enable_conditionals=True)(graph)(batch_size=len(variants), num_threads=1, device_id=None)
    return np.stack([np.array(pipeline.run()[0].as_tensor()) for _ in images])


def strengths(name: str, resampling: Resampling = Resampling.BILINEAR) -> list[Step]:
    operation = OPERATIONS[name]
    signs = (1, -1) if operation.signed else (1,)
    return [
        Step(name, sign * operation.argument(magnitude / 10), resampling)
        for magnitude in (0, 2.6, 4.8, 6, 7.3, 10)
        for sign in signs
    ]


def pictures(size: int) -> list[np.ndarray]:
    """A bright, a dark and a flat photograph, noise, and one colour."""
    photographs = [np.asarray(photograph(size, size, which)) for which in (0, 1)]
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return [*photographs, photographs[0] // 5 + 90, noise, np.full((size, size, 3), 77, dtype=np.uint8)]


@pytest.mark.parametrize("size", [64, 33])
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_is_pils(name: str, size: int) -> None:
    images, steps = pictures(size), strengths(name)
    found = augmented(images, [[step] for step in steps]).astype(int)
    expected = [
        [np.asarray(OPERATIONS[name].apply(Image.fromarray(image), step)) for step in steps] for image in images
    ]
    distance = np.abs(found - np.asarray(expected))
    # an integer coordinate may fall on either side of the image's edge
    assert np.mean(distance > 1) < (1e-4 if name in WARPS else 1e-9)
    assert distance.mean() < 0.25


@pytest.mark.parametrize("name", WARPS)
def test_bicubic_steps_are_near_pils(name: str) -> None:
    """DALI warps bilinearly; a warp in the wrong direction would differ by 48 levels or more."""
    images, steps = pictures(224)[:2], strengths(name, Resampling.BICUBIC)[6:8]
    found = augmented(images, [[step] for step in steps]).astype(int)
    expected = [
        [np.asarray(OPERATIONS[name].apply(Image.fromarray(image), step)) for step in steps] for image in images
    ]
    assert np.abs(found - np.asarray(expected)).mean() < 2


@pytest.mark.parametrize("names", [("Rotate", "Solarize"), ("Solarize", "Rotate"), ("Posterize", "Color")])
def test_steps_are_applied_in_order(names: tuple[str, str]) -> None:
    first, second = (strengths(name)[-1] for name in names)
    images = pictures(64)[:3]
    after_first = augmented(images, [[first]])[:, 0]
    assert np.array_equal(augmented(images, [[first, second]]), augmented(list(after_first), [[second]]))
    assert np.array_equal(augmented(images, [[]])[:, 0], np.stack(images))


def test_randaugment_is_the_pil_loaders(photographs: Index) -> None:
    """Images with a bicubic step are left out, because later steps can enlarge its differences."""
    found = denormalised(in_order(epochs(photographs)), SPEC)
    transform = training(SPEC, Augmentation(SCALE, True))
    compared = 0
    for position, path in enumerate(photographs.paths):
        image = Image.open(photographs.root / path).convert("RGB")
        stream = uniforms(3, "train", "augment", 0, position)
        steps = draw(SPEC, FULL, image.height, image.width, stream).steps
        if any(step.name in WARPS and step.resampling == Resampling.BICUBIC for step in steps):
            continue
        expected = transform(image, uniforms(3, "train", "augment", 0, position)).astype(float)
        assert np.abs(found[position] - expected).mean() < 1, (path, steps)
        compared += bool(steps)
    assert compared > 5


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, size=224, resize=224)])
def test_everything_but_reading_runs_on_the_gpu(spec: DatasetSpec, photographs: Index) -> None:
    drawn = Draw(Window(3, 4, 20, 30), True, [])
    pipeline_spec = PipelineSpec(
        Files(photographs), lambda *_: draw_arguments(drawn, spec.size), training_graph(spec), 8
    )
    pipeline = make_pipeline(pipeline_spec, no_batches(), draw_arguments(drawn, spec.size), torch.device("cuda"), 2)
    devices = operator_devices(pipeline)
    checked = ("Image", "Slice", "Resize", "Flip", "WarpAffine", "Equalize", "Filter", "Cast", "CropMirrorNormalize")
    assert {name: devices[name] for name in checked} == {name: {"gpu"} for name in checked}


@pytest.mark.gpu
def test_training_images_are_nearly_the_same_on_a_gpu(photographs: Index) -> None:
    on_cpu, on_gpu = (
        denormalised(in_order(epochs(photographs, device=device)), SPEC) for device in (CPU, torch.device("cuda"))
    )
    assert np.abs(on_cpu - on_gpu).mean() < 2
