"""The card of a distilled data set."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delt_hpc.config.schema import Config, Data, Rank, Recover, Select
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.dataset import Dataset
from delt_hpc.data.index import ClassMap, Index
from delt_hpc.distilled import card

TEACHER: dict[str, Any] = {"model": "convnet3", "weights": "trained here", "val_accuracy": 98.614}


def dataset_of(*folders: str) -> Dataset:
    paths = tuple(f"{folder}/{number}.png" for folder in folders for number in range(4))
    index = Index(Path("train"), paths, np.repeat(np.arange(len(folders)), 4))
    spec = replace(SPECS["digits"], mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    return Dataset(spec, ClassMap(folders, folders), index, index)


def text_of(config: Config, teacher: dict[str, Any] = TEACHER, folders: tuple[str, ...] = ("a", "b", "c")) -> str:
    return card.render(config, dataset_of(*folders), teacher)


def row(text: str, name: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return line.removeprefix(f"| {name} | ").removesuffix(" |")


CONFIGS = [
    Config(),
    Config(method="cda", select=Select(ipc=1), recover=Recover(round_iterations=None)),
    Config(method="sre2l", recover=Recover(init="noise", image_format="jpeg75")),
    Config(select=Select(strategy="random")),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_it_is_well_formed_markdown(config: Config) -> None:
    text = text_of(config)
    assert text.startswith("# digits, distilled: ")
    assert [line for line in text.splitlines() if line.startswith("|") and line.count("|") != 3] == []
    assert not {"None", "nan", "{", "}"} & set(text.replace("`", " ").split())
    assert text.endswith("\n")


def test_numbers() -> None:
    text = text_of(Config(seed=7, select=Select(ipc=2), recover=Recover(iterations=400, round_iterations=100, lr=0.5)))
    assert "digits, distilled: 2 images per class" in text
    assert "6 synthetic images distilled from the 12 training images" in text
    assert "(3 classes, 16 x 16 pixels)" in text
    assert row(text, "teacher") == "convnet3, trained here, 98.61 % top-1"
    assert row(text, "optimisation") == "400 iterations, 4 rounds, Adam, lr 0.5"
    assert row(text, "seed") == "7"
    assert row(text, "mean, std") == "(0.1, 0.2, 0.3), (0.4, 0.5, 0.6)"


def test_one_image_and_one_round_are_singular() -> None:
    text = text_of(Config(select=Select(ipc=1), recover=Recover(round_iterations=None)))
    assert "distilled: 1 image per class" in text
    assert row(text, "optimisation") == "4000 iterations, 1 round, Adam, lr 0.25"


@pytest.mark.parametrize(
    ("method", "cited"),
    [("delt", "DELT (arXiv 2411.19946)"), ("cda", "CDA (arXiv 2311.18838)"), ("sre2l", "SRe2L (arXiv 2306.13092)")],
)
def test_the_method_is_cited(method: Any, cited: str) -> None:
    text = text_of(Config(method=method))
    assert row(text, "method").startswith(f"{cited}, delt-hpc ")
    assert text.count("arXiv") == 1


@pytest.mark.parametrize(
    ("changes", "start"),
    [
        ({}, "the middle of the teacher's ranking"),
        ({"select": Select(strategy="top")}, "the easiest images of the teacher's ranking"),
        ({"rank": Rank(csv=Path("given.csv"))}, "the middle of an existing ranking"),
        ({"select": Select(strategy="random")}, "training images drawn at random"),
        ({"recover": Recover(init="noise")}, "Gaussian noise"),
    ],
)
def test_the_origin_of_the_initial_images_is_stated(changes: dict[str, Any], start: str) -> None:
    assert row(text_of(Config(**changes)), "initial images") == start


def test_a_teacher_that_was_never_validated() -> None:
    assert row(text_of(Config(), TEACHER | {"val_accuracy": None}), "teacher") == "convnet3, trained here"


def test_users_are_warned_if_imagefolder_assigns_other_labels() -> None:
    assert "The labels of ImageFolder are those of" in text_of(Config(data=Data()), folders=("00010", "10", "9"))
    assert "The labels of ImageFolder differ" in text_of(Config(), folders=("9", "10", "00010"))
