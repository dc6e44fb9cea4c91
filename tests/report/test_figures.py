import io
import re
import struct
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import fake_run
from helpers.fake_run import Shape
from PIL import Image

from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.transforms import BadImageError
from delt_hpc.report import figures, palette
from delt_hpc.report.collect import collect
from delt_hpc.report.content import Missing, Report, SampleClass, SampleImage
from delt_hpc.report.drawing import Chart
from delt_hpc.report.samples import CELL, GAP, cell_size, draw_strip, encode, read_pictures
from delt_hpc.run.folder import RunFolder

DIGITS = SPECS["digits"]


def content(root: Path, shape: Shape) -> Report:
    config, run, dataset = fake_run.write(root, shape)
    return collect(config, run, dataset, [], Missing("Not measured."))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return content(tmp_path_factory.mktemp("run"), Shape(students=("convnet3", "resnet18-small-stem")))


@pytest.fixture(scope="module")
def charts(whole: Report) -> dict[str, Chart]:
    return {chart.name: chart for section in figures.draw(whole).values() for chart in section}


def test_every_section_has_its_charts(charts: dict[str, Chart]) -> None:
    students = [f"{what}-{name}" for name in ("convnet3", "resnet18-small-stem") for what in ("accuracy", "training")]
    recovery = ["loss", "cross-entropy", "bn-distance", "active-images"]
    assert list(charts) == [
        *students,
        "differences",
        "class-accuracy",
        "confusion",
        *recovery,
        "round-seconds",
        "round-throughput",
        "teacher-accuracy",
        "teacher-loss",
    ]


def test_an_svg_takes_all_its_colours_from_the_page(charts: dict[str, Chart]) -> None:
    for chart in charts.values():
        painted = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{3,8}|var\(--[a-z]+\))", chart.svg))
        assert painted, chart.name
        assert {colour[6:-1] for colour in painted} <= set(palette.COLOURS), chart.name
    assert "var(--random)" in charts["accuracy-convnet3"].svg
    assert "var(--teacher)" in charts["accuracy-convnet3"].svg


def test_charts_of_a_page_share_no_ids(charts: dict[str, Chart]) -> None:
    ids = [name for chart in charts.values() for name in re.findall(r' id="([^"]*)"', chart.svg)]
    assert ids
    assert len(ids) == len(set(ids))


def test_an_svg_contains_text_and_refers_to_nothing_outside(charts: dict[str, Chart]) -> None:
    svg = charts["accuracy-convnet3"].svg
    assert svg.startswith("<svg viewBox=")
    assert svg.rstrip().endswith("</svg>")
    assert ">distilled, soft</text>" in svg
    assert ">86.7</text>" in svg
    assert "http" not in svg


def test_pngs_are_pictures_of_one_width(charts: dict[str, Chart]) -> None:
    sizes = {name: Image.open(io.BytesIO(chart.png)).size for name, chart in charts.items()}
    assert {width for width, _ in sizes.values()} == {864}
    assert {name for name, (_, height) in sizes.items() if height != 464} == {
        "differences",
        "class-accuracy",
        "confusion",
    }


def test_a_chart_is_the_same_each_time(whole: Report, charts: dict[str, Chart]) -> None:
    again = {
        chart.name: chart for chart in figures.draw(replace(whole, recovery=None, costs=None, teacher=None))["accuracy"]
    }
    assert again["training-convnet3"] == charts["training-convnet3"]


def test_every_light_colour_belongs_to_one_name() -> None:
    lights = [colour.light for colour in palette.COLOURS.values()]
    assert len(lights) == len(set(lights))
    css = palette.css()
    assert css.count("--distilled:") == 2
    assert "prefers-color-scheme:dark" in css


def test_losses_that_diverged_leave_a_gap(tmp_path: Path) -> None:
    report = content(tmp_path, Shape(stages=("recover",)))
    assert report.recovery is not None
    nothing = (float("nan"),) * len(report.recovery.loss)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = figures.draw(replace(report, recovery=replace(report.recovery, loss=nothing)))["recovery"]
    line = re.compile(r'<path d="M[^"]*L[^"]*"[^>]*stroke: var\(--distilled\)')
    lines = {chart.name: len(line.findall(chart.svg)) for chart in drawn}
    assert lines == {"loss": 0, "cross-entropy": 5, "bn-distance": 5, "active-images": 1}


def test_one_round_needs_no_charts_of_rounds(tmp_path: Path) -> None:
    assert figures.draw(content(tmp_path, Shape(rounds=1, stages=("recover",))))["costs"] == []


def test_running_median_of_a_window_that_shrinks_at_the_ends() -> None:
    values = np.array([9.0, 1.0, 2.0, 8.0, 3.0])
    assert figures.running_median(values, 3).tolist() == [5.0, 2.0, 2.0, 3.0, 5.5]
    assert figures.running_median(values, 0).tolist() == values.tolist()


@pytest.mark.parametrize(("size", "shown"), [(8, 96), (16, 96), (32, 96), (64, 64), (96, 96), (97, 96), (224, 96)])
def test_cells_enlarge_by_whole_factors_and_reduce_what_is_large(size: int, shown: int) -> None:
    assert cell_size(size) == shown


def picture(path: Path, colours: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours).save(path)


def sample(*images: tuple[str, str | None]) -> SampleClass:
    return SampleClass(0, "c", "c", tuple(SampleImage(i, d, s, 0, 10) for i, (d, s) in enumerate(images)))


def test_a_strip_shows_initial_above_distilled_images_pixel_by_pixel(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    rng = np.random.default_rng(0)
    drawn = {name: rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for name in ("d0", "d1", "s0", "s1")}
    for name, pixels in drawn.items():
        picture((run.distilled if name[0] == "d" else run.selected) / f"{name}.png", pixels)
    read = read_pictures(run, sample(("d0.png", "s0.png"), ("d1.png", "s1.png")), DIGITS)
    made = np.asarray(draw_strip(read, DIGITS.size))
    step = CELL + GAP
    assert made.shape == (2 * step - GAP, 2 * step - GAP, 4)
    for name, row, column in (("s0", 0, 0), ("s1", 0, 1), ("d0", 1, 0), ("d1", 1, 1)):
        cell = made[row * step : row * step + CELL, column * step : column * step + CELL]
        np.testing.assert_array_equal(cell[..., :3], drawn[name].repeat(6, 0).repeat(6, 1))
        assert (cell[..., 3] == 255).all()
    assert (made[CELL:step, :, 3] == 0).all()


def test_a_strip_from_noise_is_one_row(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    picture(run.distilled / "d.png", np.zeros((16, 16, 3), np.uint8))
    assert draw_strip(read_pictures(run, sample(("d.png", None)), DIGITS), DIGITS.size).size == (CELL, CELL)


def test_large_images_are_reduced_and_initial_ones_cropped_as_the_network_sees_them(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    wide = np.zeros((300, 600, 3), np.uint8)
    wide[:, 150:450] = 255  # the centre square, and nothing else, is white
    picture(run.selected / "s.png", wide)
    picture(run.distilled / "d.png", np.full((224, 224, 3), 60, np.uint8))
    spec = SPECS["imagenette"]
    made = np.asarray(draw_strip(read_pictures(run, sample(("d.png", "s.png")), spec), spec.size))
    assert made.shape == (2 * CELL + GAP, CELL, 4)
    assert (made[:CELL, :, :3] == 255).all()
    assert (made[CELL + GAP :, :, :3] == 60).all()


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.distilled.mkdir()
    (run.distilled / "d.png").write_bytes(struct.pack(">I", 7))
    with pytest.raises(BadImageError, match=r"d\.png"):
        read_pictures(run, sample(("d.png", None)), DIGITS)


def test_the_page_gets_small_images_without_loss_and_large_ones_as_jpeg() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    small = Image.open(io.BytesIO(encode(Image.fromarray(pixels))))
    assert small.format == "PNG"
    np.testing.assert_array_equal(np.asarray(small), pixels)
    large = Image.open(io.BytesIO(encode(Image.new("RGB", (224, 224), (9, 60, 200)))))
    assert (large.format, large.size) == ("JPEG", (224, 224))
