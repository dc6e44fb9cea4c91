import base64
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from helpers import fake_run
from helpers.fake_run import Shape

from delt_hpc.context import Context
from delt_hpc.report import formats
from delt_hpc.report.content import Spread
from delt_hpc.run import timing
from delt_hpc.run.folder import RunFolder
from delt_hpc.run.progress import Reporter
from delt_hpc.stages.report import report

CPU = torch.device("cpu")
PAPER = "https://arxiv.org/abs/2411.19946"
VOID = {"meta", "link", "img", "br", "input"}
ODD = (
    "<script>alert('x')</script>",
    "a | b",
    "\"quoted\" & 'single'",
    "[link](figures/x.png)",
    "ünïcödé `code`",
    "$x$ *y*",
)


class Parsed(HTMLParser):
    """Parses a page: unclosed tags, all attributes, and the text outside of <style>."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.faults += self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1:] == [tag]:
            self.open.pop()
        else:
            self.faults.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def run_of(root: Path, shape: Shape) -> Context:
    config, run, dataset = fake_run.write(root, shape)
    return Context(config, run, dataset, CPU, Reporter(quiet=True))


def made(root: Path, shape: Shape) -> tuple[RunFolder, Parsed, str]:
    """The run with its report: HTML parsed, Markdown as text."""
    context = run_of(root, shape)
    page, run = report(context), context.run
    assert page == root / "report" / "report.html"
    return run, Parsed(page.read_text(encoding="utf-8")), (run.report / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Parsed, str]:
    return made(tmp_path_factory.mktemp("run"), Shape())


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Parsed, str]:
    folders = tuple(f"class {i}" for i in range(len(ODD)))
    shape = Shape(
        classes=folders, names=ODD, ipc=2, rounds=2, arms=("distilled-soft",), stages=("squeeze", "select", "aggregate")
    )
    return made(tmp_path_factory.mktemp("run"), shape)


def test_the_page_is_well_formed(whole: tuple[RunFolder, Parsed, str]) -> None:
    page = whole[1]
    assert page.faults == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))


def test_the_page_loads_nothing(whole: tuple[RunFolder, Parsed, str]) -> None:
    run, page, _ = whole
    text = (run.report / "report.html").read_text(encoding="utf-8")
    assert not {"iframe", "object", "embed", "base"} & set(page.tags)
    assert page.tags.count("link") == page.tags.count("script") == 1
    assert page.values("src")
    assert all(target.startswith("data:") for target in page.values("src"))
    assert set(re.findall(r"url\((.)", text)) == {"#"}
    assert "@import" not in text
    assert re.findall(r"\w+://[^\"]*", text) == [PAPER]


def test_its_links_lead_to_the_paper_and_to_files_that_exist(whole: tuple[RunFolder, Parsed, str]) -> None:
    run, page, _ = whole
    inside = [target for target in page.values("href") if target.startswith("#")]
    assert inside
    assert {target[1:] for target in inside} <= set(page.values("id"))
    outside = [target for target in page.values("href") if not target.startswith(("#", "data:"))]
    assert PAPER in outside
    files = [unquote(target) for target in outside if target != PAPER]
    assert {"../distilled/manifest.csv", "../timing.csv", "../report/report.json"} <= set(files)
    assert all((run.report / target).exists() for target in files)


def test_the_policy_allows_this_script_and_no_other(whole: tuple[RunFolder, Parsed, str]) -> None:
    run, page, _ = whole
    text = (run.report / "report.html").read_text(encoding="utf-8")
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (value for value in page.values("content") if value.startswith("default-src 'none'"))
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_command_of_the_page_makes_the_run_again(whole: tuple[RunFolder, Parsed, str]) -> None:
    run, page, text = whole
    command = f"delt-hpc run {run.config} --run {run.root}-again"
    assert command in page.text
    assert f"```\n{command}\n```" in text


def test_page_and_markdown_contain_the_numbers(whole: tuple[RunFolder, Parsed, str]) -> None:
    _, page, text = whole
    assert "| convnet3 | distilled | soft | 3 | 86.7 ± 1.5 | 87.2 ± 1.5 | 86.9 ± 1.5 |" in text
    assert "| distilled against random | +8.0 points, 95 % interval 8.0 to 8.0 over 3 seeds: better |" in text
    assert "Distilled against random: +8.0 points, 95 % interval 8.0 to 8.0 over 3 seeds: better." in page.text
    assert "- convnet3, soft labels, against selected: +5.0 points" in text
    assert "- 0 taken for 1: 18.5 %" in text
    assert "| 0 | 36 | 74.1 | 64.8 | 57.4 |" in text
    assert "| 0 | 2 | 4.0 s | 2.0 s | 3,000 | 750 | 200 ms |" in text
    assert "86.7± 1.5" in page.text
    assert "iterations: 400" in page.text  # the configuration
    assert "medium" in text


def test_json_holds_the_same_numbers(whole: tuple[RunFolder, Parsed, str]) -> None:
    content = json.loads((whole[0].report / "report.json").read_text(encoding="utf-8"))
    assert content["headline"]["difference"]["points"]["mean"] == pytest.approx(8.0)
    assert [seed["final"] for seed in content["accuracy"][0]["trainings"]] == [85.0, 87.0, 88.0]
    assert content["config"]["recover"]["iterations"] == 400
    assert content["missing"] == {}
    assert 0 < content["diversity"]["distilled"] < 1
    assert 0 < content["diversity"]["initial"] < 1


def test_the_pictures_of_the_markdown_exist(whole: tuple[RunFolder, Parsed, str]) -> None:
    run, _, text = whole
    named = {unquote(name) for name in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text)}
    there = {path.relative_to(run.report).as_posix() for path in run.report.glob("figures/*")}
    assert named == there


def test_odd_class_names_are_text_on_the_page(odd: tuple[RunFolder, Parsed, str]) -> None:
    page = odd[1]
    assert page.faults == []
    assert page.tags.count("script") == 1  # the page's own
    for name in ODD:
        assert name in page.text


def test_odd_class_names_are_text_in_markdown(odd: tuple[RunFolder, Parsed, str]) -> None:
    text = odd[2]
    assert "**\\<script\\>alert('x')\\</script\\>** (class 0, folder class 0)" in text
    assert "**a \\| b**" in text
    assert "**\\[link\\](figures/x.png)**" in text
    assert "**\\$x\\$ \\*y\\***" in text


def test_missing_stages_are_named(tmp_path: Path) -> None:
    _, page, text = made(tmp_path, Shape(stages=("squeeze",)))
    assert page.faults == []
    for text_shown in (" ".join(page.text.split()), text.replace("`", "")):
        assert "This report is not complete yet. Stages to run: recover, aggregate, evaluate." in text_shown
        assert "No student has been trained yet. Run the stage evaluate." in text_shown
        assert "No batch has been recovered yet. Run the stage recover." in text_shown
        assert "There is no distilled data set yet. Run the stage aggregate." in text_shown
        assert "There are no distilled images to measure yet. Run the stage aggregate." in text_shown


def test_one_seed_shows_a_dash(tmp_path: Path) -> None:
    run, page, text = made(tmp_path, Shape(seeds=(3407,), stages=("evaluate",)))
    assert "| convnet3 | distilled | soft | 1 | 87.0 ± – | 87.5 ± – | 87.2 ± – |" in text
    assert "87.0± –" in page.text
    assert "NaN" not in (run.report / "report.json").read_text()


def test_a_run_from_noise_has_distilled_images_alone(tmp_path: Path) -> None:
    run, page, _ = made(tmp_path, Shape(noise=True, stages=("squeeze", "aggregate")))
    assert "which started from noise" in page.text
    assert "Initial images" not in page.text
    assert json.loads((run.report / "report.json").read_text())["diversity"]["initial"] is None


def test_with_one_image_per_class_diversity_is_not_measured(tmp_path: Path) -> None:
    run, page, text = made(tmp_path, Shape(ipc=1, rounds=1, arms=("distilled-soft",)))
    assert page.faults == []
    assert "With one image per class there is nothing to compare." in text
    assert "not complete" not in text
    assert json.loads((run.report / "report.json").read_text())["diversity"] is None


def test_a_report_is_made_again_only_when_its_inputs_change(tmp_path: Path) -> None:
    context = run_of(tmp_path, Shape(arms=("distilled-soft",), seeds=(1, 2), stages=("evaluate",)))
    page, run = report(context), context.run
    os.utime(page, ns=(0, 0))
    report(context)
    assert page.stat().st_mtime_ns == 0
    assert (timing.gather(run)["stage"] == "report").sum() == 1
    fake_run.write_training(run, Shape(), "convnet3", 2, "distilled-soft", 90.0)
    report(context)
    assert page.stat().st_mtime_ns > 0
    assert json.loads((run.report / "report.json").read_text())["accuracy"][0]["final"]["mean"] == 88.5


def test_a_report_with_a_lost_file_is_made_again(tmp_path: Path) -> None:
    context = run_of(tmp_path, Shape(stages=()))
    report(context)
    (context.run.report / "report.md").unlink()
    report(context)
    assert (context.run.report / "report.md").exists()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.0271, "27 ms"),
        (4.24, "4.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (192, "3 min 12 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (104400, "29 h 00 min"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert formats.duration(seconds) == text


def test_other_numbers() -> None:
    assert formats.spread(Spread(86.44, 0.55, 3)) == "86.4 ± 0.6"
    assert formats.spread(None) == "–"
    assert (formats.signed(7.0), formats.signed(-1.25), formats.signed(None)) == ("+7.0", "−1.2", "–")
    assert (formats.rate(31548.7), formats.rate(31.54), formats.rate(None)) == ("31,549", "31.5", "–")
    assert (formats.mebibytes(812.4), formats.mebibytes(3276.8)) == ("812 MiB", "3.2 GiB")
    assert (formats.millions(11_689_512), formats.millions(320_010)) == ("11.7 M", "320 k")
    assert formats.moment("2026-03-02T10:00:00+00:00") == "2026-03-02 10:00 UTC"
