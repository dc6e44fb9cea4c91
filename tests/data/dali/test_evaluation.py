"""DALI's evaluation images against torchvision's on PIL images, for plain, odd and damaged files."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.photographs import (
    denormalised,
    encoded,
    jpeg,
    no_batches,
    odd_files,
    operator_devices,
    photograph,
    write_files,
)
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

pytest.importorskip("nvidia.dali")

from delt_hpc.config.schema import OnBad
from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog.specs import SPECS, DatasetSpec
from delt_hpc.data.dali.evaluation import evaluation_batches, evaluation_graph, placement
from delt_hpc.data.dali.files import Files, plain_jpeg_size
from delt_hpc.data.dali.pipeline import PipelineSpec, Request, make_pipeline
from delt_hpc.data.index import Index
from delt_hpc.errors import UserError

CPU = torch.device("cpu")
# (height, width): odd ones detect a crop that is one pixel off
SHAPES = ((256, 301), (375, 500), (500, 375), (301, 256), (257, 257), (64, 65), (40, 33), (1, 1), (1, 7), (427, 640))


def spec_of(size: int, resize: int) -> DatasetSpec:
    return replace(SPECS["imagenet-1k"], size=size, resize=resize)


SPEC = spec_of(64, 73)


def load(
    index: Index, spec: DatasetSpec = SPEC, *, batch_size: int = 4, threads: int = 2, device: torch.device = CPU
) -> tuple[Tensor, list[int]]:
    found = list(
        evaluation_batches(
            index, np.arange(len(index)), spec, batch_size, device=device, threads=threads, bad=BadFiles()
        )
    )
    return torch.cat([images for images, _ in found]), np.concatenate([positions for _, positions in found]).tolist()


def torchvisions(path: Path, spec: DatasetSpec) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    transform = v2.Compose([v2.Resize(spec.resize, antialias=True), v2.CenterCrop(spec.size)])
    return np.asarray(transform(image)).astype(float)


def largest_difference(index: Index, spec: DatasetSpec, **options: Any) -> np.ndarray:
    """The largest difference of a pixel value, for each image."""
    images, _ = load(index, spec, **options)
    expected = np.stack([torchvisions(index.root / path, spec) for path in index.paths])
    distance: np.ndarray = np.abs(denormalised(images, spec) - expected).max(axis=(1, 2, 3))
    return distance


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Index:
    files = {
        f"{height}x{width}-{which}.jpg": encoded(photograph(height, width, which), "JPEG", quality=92)
        for height, width in SHAPES
        for which in (0, 1)
    }
    return write_files(tmp_path_factory.mktemp("photographs"), files)


# the margin of ImageNet's sizes, the smallest margins, and none
@pytest.mark.parametrize(
    ("size", "resize"), [(224, 256), (160, 182), (64, 73), (64, 67), (64, 66), (64, 65), (64, 64), (33, 33), (1, 1)]
)
def test_no_pixel_is_more_than_one_level_from_torchvisions(size: int, resize: int, photographs: Index) -> None:
    assert largest_difference(photographs, spec_of(size, resize)).max() < 1.001


def test_colours_are_normalised(photographs: Index) -> None:
    images, _ = load(photographs)
    expected = torch.stack(
        [
            v2.functional.normalize(
                torch.from_numpy(torchvisions(photographs.root / path, SPEC)).permute(2, 0, 1) / 255,
                SPEC.mean,
                SPEC.std,
            )
            for path in photographs.paths
        ]
    )
    assert images.dtype == torch.float32
    assert (images - expected).abs().max() < 1.01 / 255 / min(SPEC.std)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20, 64])
def test_every_image_is_delivered_once_and_in_order(batch_size: int, photographs: Index) -> None:
    count = len(photographs)
    sizes = [
        len(images)
        for images, _ in evaluation_batches(
            photographs, np.arange(count), SPEC, batch_size, device=CPU, threads=2, bad=BadFiles()
        )
    ]
    whole, left = divmod(count, batch_size)
    assert sizes == [batch_size] * whole + [left] * bool(left)
    assert load(photographs, batch_size=batch_size)[1] == list(range(count))


def test_positions_may_repeat_in_any_order(photographs: Index) -> None:
    positions = np.asarray([19, 0, 3, 3, 7])
    batches = list(evaluation_batches(photographs, positions, SPEC, 2, device=CPU, threads=1, bad=BadFiles()))
    assert np.concatenate([delivered for _, delivered in batches]).tolist() == positions.tolist()
    whole, _ = load(photographs)
    assert torch.equal(torch.cat([images for images, _ in batches]), whole[torch.from_numpy(positions)])


def test_no_positions_give_no_batches(photographs: Index) -> None:
    empty = np.asarray([], dtype=np.int64)
    assert not list(evaluation_batches(photographs, empty, SPEC, 2, device=CPU, threads=1, bad=BadFiles()))


def test_neither_threads_nor_batches_change_an_image(photographs: Index) -> None:
    first, _ = load(photographs, threads=1, batch_size=20)
    assert torch.equal(first, load(photographs, threads=4, batch_size=20)[0])
    assert torch.equal(first, load(photographs, threads=2, batch_size=3)[0])


def test_a_batch_is_not_overwritten_by_later_ones(photographs: Index) -> None:
    stream = evaluation_batches(photographs, np.arange(20), SPEC, 2, device=CPU, threads=2, bad=BadFiles())
    first, _ = next(stream)
    before = first.clone()
    assert sum(len(images) for images, _ in stream) == 18
    assert torch.equal(first, before)


@pytest.mark.parametrize("spec", [SPEC, spec_of(64, 64)], ids=["margin", "no margin"])
def test_odd_files_have_pils_pixels(spec: DatasetSpec, tmp_path: Path) -> None:
    index = write_files(tmp_path, odd_files())
    distance = dict(zip(index.paths, largest_difference(index, spec), strict=True))
    assert max(distance.values()) < 1.001, distance
    # images that PIL decodes are equal
    assert distance["cmyk.jpg"] < 0.001 > distance["palette-alpha.png"]


def header_only(content: bytes) -> bytes:
    return content[: content.index(b"\xff\xda")]


def bad_crc(content: bytes) -> bytes:
    offset = content.index(b"IDAT") + 20
    return content[:offset] + bytes([content[offset] ^ 0xFF]) + content[offset + 1 :]


def bad_files() -> dict[str, tuple[bytes | None, str]]:
    """Content of each kind of bad file (None: missing) and a part of the reported reason."""
    png, webp = encoded(photograph(90, 120), "PNG"), encoded(photograph(90, 120), "WEBP")
    return {
        "missing.jpg": (None, "No such file"),
        "empty.jpg": (b"", "is empty"),
        "truncated.jpg": (jpeg()[:-300], "truncated"),
        "half.jpg": (jpeg()[: len(jpeg()) // 2], "truncated"),
        "header.jpg": (header_only(jpeg()), "cannot"),
        "crc.png": (bad_crc(png), "broken"),
        "truncated.png": (png[: len(png) // 2], "truncated"),
        "truncated.webp": (webp[: len(webp) // 2], ""),
        "text.jpg": (b"no image at all\n" * 20, "cannot identify"),
        "page.jpg": (b"<!doctype html><title>404</title>", "cannot identify"),
        "start.jpg": (b"\xff\xd8\xff\xe0 and nothing more", ""),
    }


@pytest.mark.parametrize("name", bad_files())
@pytest.mark.parametrize("on_bad", ["raise", "skip"])
def test_a_bad_file_is_named_with_its_reason(name: str, on_bad: OnBad, tmp_path: Path) -> None:
    content, reason = bad_files()[name]
    index = write_files(tmp_path, {"a.jpg": jpeg(), name: content or b"", "b.jpg": jpeg(70, 50)})
    if content is None:
        (tmp_path / name).unlink()
    bad = BadFiles(on_bad)
    batches = evaluation_batches(index, np.arange(3), SPEC, 2, device=CPU, threads=1, bad=bad)
    if on_bad == "raise":
        with pytest.raises(UserError, match=rf"{name}: .*{reason}"):
            list(batches)
        return
    assert np.concatenate([positions for _, positions in batches]).tolist() == [0, 2]
    assert [(file.position, file.path) for file in bad.skipped] == [(1, name)]
    assert reason in bad.skipped[0].reason, bad.skipped
    assert str(tmp_path) not in bad.skipped[0].reason


def test_what_dali_s_decoder_prints_is_told_of_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A damaged Huffman table: the decoder's message does not name the file, and DALI gives no reason."""
    content = bytearray(jpeg())
    content[content.index(b"\xff\xc4") + 6] ^= 0xFF
    index = write_files(tmp_path, {"a.jpg": jpeg(), "tables.jpg": bytes(content), "b.jpg": jpeg()})
    with pytest.raises(UserError, match=r"(?m)^    .*tables\.jpg: .*\(DALI: Bogus Huffman table definition\)$"):
        load(index)
    assert capfd.readouterr().err.count("Bogus Huffman") == 1  # of the batch that the file was in


def test_a_bad_file_is_named_although_standard_error_is_closed(tmp_path: Path) -> None:
    code = f"""
import os
os.close(2)
from pathlib import Path
import numpy as np, torch
from delt_hpc.data.bad_files import BadFiles
from delt_hpc.data.catalog.specs import DatasetSpec
from delt_hpc.data.dali.evaluation import evaluation_batches
from delt_hpc.data.index import Index
from delt_hpc.errors import UserError
index = Index(Path({str(tmp_path)!r}), ("tables.jpg",), np.zeros(1, dtype=np.int64))
spec = DatasetSpec("x", 2, 32, 36, (0.5,) * 3, (0.5,) * 3, True, "convnet3")
try:
    list(evaluation_batches(index, np.arange(1), spec, 1, device=torch.device("cpu"), threads=1, bad=BadFiles()))
except UserError as error:
    print(error)
"""
    content = bytearray(jpeg())
    content[content.index(b"\xff\xc4") + 6] ^= 0xFF
    write_files(tmp_path, {"tables.jpg": bytes(content)})
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    assert "tables.jpg: broken data stream" in done.stdout


def test_a_folder_is_a_bad_file(tmp_path: Path) -> None:
    index = write_files(tmp_path, {"a.jpg": jpeg()})
    (tmp_path / "folder.jpg").mkdir()
    index = Index(tmp_path, ("a.jpg", "folder.jpg"), np.zeros(2, dtype=np.int64))
    with pytest.raises(UserError, match=r"folder\.jpg: Is a directory"):
        load(index)


def test_every_bad_file_of_a_batch_is_named(tmp_path: Path) -> None:
    index = write_files(tmp_path, {"a.jpg": b"", "b.jpg": jpeg(), "c.jpg": b"text"})
    with pytest.raises(UserError, match=r"(?s)2 unreadable.*a\.jpg: is empty.*c\.jpg: cannot identify"):
        load(index)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_skipping_loses_the_bad_files_alone(batch_size: int, tmp_path: Path) -> None:
    """Truncated JPEGs are found by the decoder, while the pipeline is running; others when they are read."""
    files = {f"{number:02d}.jpg": encoded(photograph(60 + number, 80), "JPEG") for number in range(30)}
    decoder, reader = {2, 3, 11, 14, 29}, {0, 12, 13}
    for number in decoder:
        files[f"{number:02d}.jpg"] = files[f"{number:02d}.jpg"][:-200]
    for number in reader:
        files[f"{number:02d}.jpg"] = b"text"
    index = write_files(tmp_path, files)
    bad = BadFiles("skip")
    batches = list(evaluation_batches(index, np.arange(30), SPEC, batch_size, device=CPU, threads=2, bad=bad))
    good = sorted(set(range(30)) - decoder - reader)
    assert np.concatenate([positions for _, positions in batches]).tolist() == good
    assert sorted(file.position for file in bad.skipped) == sorted(decoder | reader)
    expected = np.stack([torchvisions(tmp_path / f"{number:02d}.jpg", SPEC) for number in good])
    assert np.abs(denormalised(torch.cat([images for images, _ in batches]), SPEC) - expected).max() < 1.001


def test_only_bad_files_give_no_batch(tmp_path: Path) -> None:
    index = write_files(tmp_path, {"a.jpg": jpeg()[:-300], "b.jpg": b"", "c.jpg": jpeg()[:-200]})
    bad = BadFiles("skip")
    assert not list(evaluation_batches(index, np.arange(3), SPEC, 2, device=CPU, threads=1, bad=bad))
    assert len(bad.skipped) == 3


def test_a_file_only_pil_can_decode_is_not_bad(tmp_path: Path) -> None:
    """Stray bytes before a marker: PIL ignores them, DALI's parser does not."""
    content = jpeg(progressive=True).replace(b"\xff\xda", b"\x46\xff\xda", 1)
    assert plain_jpeg_size(content)
    index = write_files(tmp_path, {"a.jpg": jpeg(), "stray.jpg": content, "b.jpg": jpeg(70, 50)})
    assert largest_difference(index, SPEC).max() < 1.001


def test_a_closed_stream_does_not_disturb_the_next(photographs: Index) -> None:
    stream = evaluation_batches(photographs, np.arange(20), SPEC, 2, device=CPU, threads=2, bad=BadFiles())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert load(photographs)[1] == list(range(20))


@pytest.mark.parametrize("spec", [SPEC, spec_of(64, 64)], ids=["margin", "no margin"])
def test_everything_but_reading_runs_on_the_gpu(spec: DatasetSpec, photographs: Index) -> None:
    files = Files(photographs)
    image = files.read(0)
    describe: Callable[..., Any] = placement(spec)
    pipeline_spec = PipelineSpec(files, describe, evaluation_graph(spec), 8)
    pipeline = make_pipeline(pipeline_spec, no_batches(), describe(Request(0), image), torch.device("cuda"), 2)
    devices = operator_devices(pipeline)
    assert devices["Image"] == devices["Resize"] == devices["CropMirrorNormalize"] == {"gpu"}
    assert [output.device for output in pipeline._graph_outputs] == ["gpu", "cpu"]


@pytest.mark.gpu
def test_a_gpu_decodes_nearly_to_the_same_pixels(photographs: Index) -> None:
    on_cpu, on_gpu = (denormalised(load(photographs, device=device)[0], SPEC) for device in (CPU, torch.device("cuda")))
    distance = np.abs(on_cpu - on_gpu)
    assert distance.mean() < 1
    assert np.quantile(distance, 0.999) < 8


@pytest.mark.gpu
def test_odd_files_are_the_same_on_a_gpu(tmp_path: Path) -> None:
    odd = {name: content for name, content in odd_files().items() if not plain_jpeg_size(content)}
    assert largest_difference(write_files(tmp_path, odd), SPEC, device=torch.device("cuda")).max() < 1.001


@pytest.mark.gpu
def test_the_same_files_are_bad_on_a_gpu(tmp_path: Path) -> None:
    present = {name: content for name, (content, _) in bad_files().items() if content is not None}
    index = write_files(tmp_path, {"a.jpg": jpeg(), **present, "b.jpg": jpeg(70, 50)})
    bad = BadFiles("skip")
    batches = evaluation_batches(index, np.arange(len(index)), SPEC, 4, device=torch.device("cuda"), threads=2, bad=bad)
    assert np.concatenate([positions for _, positions in batches]).tolist() == [0, len(index) - 1]
    assert sorted(file.path for file in bad.skipped) == sorted(present)


@pytest.mark.gpu
def test_gpu_memory_is_given_back(photographs: Index) -> None:
    free = []
    for _ in range(2):
        load(photographs, device=torch.device("cuda"))
        torch.cuda.empty_cache()
        free.append(torch.cuda.mem_get_info()[0])
    assert free[1] >= free[0] - 32 * 2**20
