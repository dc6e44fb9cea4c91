"""Segments: which images they contain, sums over them, and their division into chunks."""

import itertools

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from delt_kernels.segments import PROGRAMS, Tiles, chunk_of, next_power_of_two, per_segment, segment_of, sum_chunks

SPLITS = [[0, 7], [0, 3, 7], [0, 0, 1, 1, 6, 7], [0, 7, 7], [0, 1, 2, 3, 4, 5, 6, 7], [0, 0]]


def table(split: list[int], device: torch.device) -> Tensor:
    return torch.tensor(split, dtype=torch.int32, device=device)


def looped(rows: Tensor, split: list[int]) -> Tensor:
    return torch.stack([rows[a:b].sum(0) for a, b in itertools.pairwise(split)])


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_segment_of_each_image(device: torch.device, split: list[int]) -> None:
    expected = [g for g, (a, b) in enumerate(itertools.pairwise(split)) for _ in range(a, b)]
    assert segment_of(table(split, device), split[-1]).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_sums_equal_those_of_a_loop(device: torch.device, split: list[int], dtype: torch.dtype) -> None:
    rows = torch.randn(split[-1], 2, 5, dtype=torch.float64)
    sums = per_segment(rows.to(device, dtype), table(split, device))
    assert sums.dtype == dtype
    torch.testing.assert_close(sums.cpu().double(), looped(rows, split), rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_segments_are_independent(device: torch.device) -> None:
    rows = torch.randn(3, 40, device=device)
    sums = []
    for before in (0, 1, 5):
        others = torch.full((8, 40), torch.nan, device=device)
        batch = torch.cat([others[:before], rows, others[before:]])
        sums.append(per_segment(batch, table([0, before, before + 3, 11], device))[1])
    assert torch.equal(sums[0], sums[1]) and torch.equal(sums[0], sums[2])


def test_gradient_of_sums(device: torch.device) -> None:
    rows = torch.randn(7, 3, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(per_segment, (rows, table([0, 3, 3, 7], device)))


def test_sums_compile_into_one_graph(device: torch.device) -> None:
    rows = torch.randn(7, 3, device=device, requires_grad=True)
    offsets = table([0, 3, 3, 7], device)
    compiled = torch.compile(per_segment, fullgraph=True, backend="aot_eager")
    (gradient,) = torch.autograd.grad(compiled(rows, offsets).pow(2).sum(), rows)
    (expected,) = torch.autograd.grad(per_segment(rows, offsets).pow(2).sum(), rows)
    assert torch.equal(gradient, expected)


@triton.jit
def list_chunks(offsets_ptr, chunks_ptr, segments, unit, length, padded: tl.constexpr):  # type: ignore[no-untyped-def]
    segment, first, end = chunk_of(offsets_ptr, tl.program_id(0), segments, unit, length, padded)
    pointer = chunks_ptr + tl.program_id(0) * 3
    tl.store(pointer, segment)
    tl.store(pointer + 1, first)
    tl.store(pointer + 2, end)


@pytest.mark.parametrize(("unit", "chunk"), [(1, 1), (5, 4), (9, 64)])
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_chunks_cover_each_row_once(kernel_device: torch.device, split: list[int], unit: int, chunk: int) -> None:
    segments = len(split) - 1
    number = split[-1] * unit // chunk + segments + 1
    chunks = torch.empty(number, 3, dtype=torch.int64, device=kernel_device)
    list_chunks[(number,)](table(split, kernel_device), chunks, segments, unit, chunk, next_power_of_two(segments))
    expected = []
    for g, (a, b) in enumerate(itertools.pairwise(split)):
        expected += [[g, first, min(first + chunk, b * unit)] for first in range(a * unit, b * unit, chunk)]
    assert chunks[: len(expected)].tolist() == expected
    for segment, first, end in chunks[len(expected) :].tolist():
        assert segment >= segments and end <= first


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_chunks_are_summed(kernel_device: torch.device, split: list[int]) -> None:
    unit, chunk, lengths = 5, 4, [b - a for a, b in itertools.pairwise(split)]
    ends = list(itertools.accumulate([-(-n * unit // chunk) for n in lengths], initial=0))
    partials = torch.randn(ends[-1], 2, 33, dtype=torch.float64)
    partials = torch.cat([partials, torch.full((2, 2, 33), torch.nan)])  # the grid may have more chunks than needed
    sums = sum_chunks(partials.float().to(kernel_device), table(split, kernel_device), unit, chunk)
    torch.testing.assert_close(sums.cpu().double(), looped(partials, ends), rtol=0, atol=2e-6)


def test_many_chunks_of_one_segment(kernel_device: torch.device) -> None:
    partials = torch.randn(150, 2, 3, dtype=torch.float64)
    sums = sum_chunks(partials.float().to(kernel_device), table([0, 100, 150], kernel_device), 1, 1)
    torch.testing.assert_close(sums.cpu().double(), looped(partials, [0, 100, 150]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("choose", [Tiles.channels_last, Tiles.planes])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 49), (462, 64, 12544), (462, 2048, 49), (100, 65, 1), (0, 8, 4)])
def test_grid_suffices_for_any_offsets(choose, shape: tuple[int, int, int]) -> None:  # type: ignore[no-untyped-def]
    images, channels, pixels = shape
    for segments, elements in itertools.product((1, 2, 8), (1024, 2048)):
        tiles = choose(images, channels, pixels, segments, elements)
        assert tiles.block_rows * tiles.block_channels <= elements
        for lengths in ([images], [1] * images, [images // 2, images - images // 2], [images - 1, 1]):
            if 0 < len(lengths) <= segments and min(lengths) >= 0:
                assert sum(-(-n * tiles.image_rows // tiles.chunk_rows) for n in lengths) <= tiles.grid[0]
        assert tiles.grid[1] * tiles.block_channels >= channels
        assert tiles.grid[0] * tiles.grid[1] <= max(PROGRAMS, segments * tiles.grid[1])
        assert tiles.segments >= segments


def test_powers_of_two() -> None:
    assert [next_power_of_two(n) for n in (0, 1, 2, 3, 4, 5, 1023, 1024)] == [1, 1, 2, 4, 4, 8, 1024, 1024]
