"""The page in a real browser, as wide as a desktop window and as a phone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import fake_run
from helpers.browser import find_browser, look
from helpers.fake_run import Shape

from delt_hpc.context import Context
from delt_hpc.run.progress import Reporter
from delt_hpc.stages.report import report

BEFORE = 46  # pixels at which the strips of earlier pages showed a small image; now at least three times that
SCRIPT = """
const box = (element) => { const found = element.getBoundingClientRect(); return [found.width, found.height]; };
const shown = () => [...page.querySelectorAll(".panel .pics img")].filter((image) => image.offsetParent);
const overflow = () => [page.documentElement.scrollWidth, view.innerWidth];
const found = {overflow: overflow(), images: shown().map(box)};
found.rendering = view.getComputedStyle(shown()[0]).imageRendering;
found.tables = [...page.querySelectorAll(".scroll")].map((around) => view.getComputedStyle(around).overflowX);
page.querySelectorAll("details").forEach((details) => { details.open = true; });
found.open = overflow();
found.widest = Math.max(...[...page.querySelectorAll("main *")]
  .filter((element) => !element.closest(".scroll, pre, svg")).map((e) => e.getBoundingClientRect().right));
page.querySelector('label[for="class-2"]').click();
found.ofClass = shown().map((image) => image.alt);
const first = shown()[0], before = box(first)[0], viewer = page.getElementById("viewer");
found.closed = viewer.open;
first.click();
const frame = () => [...viewer.querySelectorAll(".frame img")];
found.opened = viewer.open;
found.larger = frame().map((image) => box(image)[0] / before);
found.frame = frame().map((image) => image.getBoundingClientRect().bottom <= view.innerHeight);
found.caption = viewer.querySelector(".caption").textContent;
viewer.querySelector('[data-step="1"]').click();
found.next = viewer.querySelector(".caption").textContent;
viewer.querySelector("form button").click();
found.left = viewer.open;
page.querySelector("#classes .enlarge").click();
found.chart = viewer.querySelectorAll(".frame svg text").length;
return found;
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    find_browser()
    config, run, dataset = fake_run.write(tmp_path_factory.mktemp("run"), Shape(students=("convnet3", "resnet18")))
    return report(Context(config, run, dataset, torch.device("cpu"), Reporter(quiet=True)))


@pytest.mark.parametrize("width", [1200, 360])
def test_the_page_fits_and_its_pictures_are_large(page: Path, width: int, tmp_path: Path) -> None:
    found: dict[str, Any] = look(page, SCRIPT, tmp_path, width)
    for measured, window in (found["overflow"], found["open"]):
        assert measured <= window == width
    assert found["widest"] <= width
    assert found["tables"]
    assert set(found["tables"]) == {"auto"}
    assert len(found["images"]) == 20  # one of each class: start and distilled
    for image in found["images"]:
        assert image[0] >= 3 * BEFORE
        assert image[0] == pytest.approx(image[1])
    assert found["rendering"] == "pixelated"


@pytest.mark.parametrize("width", [1200, 360])
def test_a_class_is_chosen_and_a_click_enlarges(page: Path, width: int, tmp_path: Path) -> None:
    found: dict[str, Any] = look(page, SCRIPT, tmp_path, width)
    assert found["ofClass"] == ["2, start", "2, distilled"] * 10
    assert not found["closed"]
    assert found["opened"]
    assert len(found["larger"]) == 2
    assert min(found["larger"]) > 1.5
    assert found["frame"] == [True, True]
    assert found["caption"] == "2, image 0: from round 0, 400 iterations"
    assert found["next"].startswith("2, image 1: ")
    assert not found["left"]
    assert found["chart"] > 10


def test_a_reader_who_prefers_dark_gets_a_dark_page(page: Path, tmp_path: Path) -> None:
    script = """
    const style = (element) => view.getComputedStyle(element);
    const text = page.querySelector(".charts svg text");
    return [style(page.documentElement).backgroundColor, style(page.querySelector("h1")).color, style(text).fill];
    """
    light, dark = (
        [sum(map(int, colour.removeprefix("rgb(").rstrip(")").split(","))) / 765 for colour in colours]
        for colours in (look(page, script, tmp_path / name, 1200, dark=name == "dark") for name in ("light", "dark"))
    )
    assert light[0] > 0.9
    assert max(light[1:]) < 0.6
    assert dark[0] < 0.15
    assert min(dark[1:]) > 0.5
