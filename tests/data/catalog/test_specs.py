"""Specs: registered values, configured values that override them, and values that must be given."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delt_hpc.config.schema import Data
from delt_hpc.data import measure
from delt_hpc.data.catalog import sources
from delt_hpc.data.catalog.specs import SPECS, DatasetSpec, margin, resolve
from delt_hpc.data.index import class_folders, scan
from delt_hpc.errors import UserError
from delt_hpc.models.registry import check

MINE: dict[str, Any] = {"name": "mine", "size": 48, "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_registered_specs_are_consistent(spec: DatasetSpec) -> None:
    assert resolve(Data(name=spec.name), spec.classes, None) == spec
    assert spec.resize >= spec.size
    assert all(0 < value < 1 for value in (*spec.mean, *spec.std))
    check(spec.teacher, spec.classes, spec.size, where="spec", needs_batch_norm=True)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_specs_survive_json(spec: DatasetSpec) -> None:
    assert DatasetSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_the_colours_of_the_embedded_data_set_are_its_own(tmp_path: Path) -> None:
    sources.provide("digits", tmp_path, "train", "val")
    train = scan(tmp_path / "train", class_folders(tmp_path / "train"))
    mean, std = measure.colours(train, Data(name="digits"), seed=0)
    np.testing.assert_allclose(SPECS["digits"].mean, mean, atol=5e-4)
    np.testing.assert_allclose(SPECS["digits"].std, std, atol=5e-4)


@pytest.mark.parametrize(("size", "resized"), [(224, 256), (160, 176), (64, 72), (56, 64), (32, 32), (33, 33), (6, 6)])
def test_margin(size: int, resized: int) -> None:
    assert margin(size) == resized


def test_the_centre_crop_fits_for_every_size() -> None:
    assert [size for size in range(1, 600) if margin(size) < size] == []
    assert resolve(Data(**MINE | {"size": 41}), 3, None).resize == 41


def test_configured_values_override_the_registered_ones() -> None:
    data = Data(
        name="cifar10", size=28, resize=40, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], mirror=False, num_classes=3
    )
    expected = DatasetSpec("cifar10", 3, 28, 40, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), False, SPECS["cifar10"].teacher)
    assert resolve(data, 3, None) == expected


@pytest.mark.parametrize(
    ("values", "resized"),
    [({}, 64), ({"size": 64}, 64), ({"resize": 72}, 72), ({"size": 56}, 64), ({"size": 128}, 144)],
)
def test_another_size_takes_the_margin_of_that_size(values: dict[str, int], resized: int) -> None:
    assert resolve(Data(name="tiny-imagenet", **values), 200, None).resize == resized  # type: ignore[arg-type]


def test_an_unregistered_data_set() -> None:
    expected = DatasetSpec("mine", 7, 48, 48, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), True, "resnet18")
    assert resolve(Data(**MINE), 7, None) == expected


def test_measured_colours() -> None:
    data = Data(**MINE | {"mean": "measure", "std": "measure"})
    measured = (0.11, 0.22, 0.33), (0.44, 0.55, 0.66)
    spec = resolve(data, 7, measured)
    assert (spec.mean, spec.std) == measured


@pytest.mark.parametrize(("key", "expected"), [("size", "224"), ("mean", "measure"), ("std", "measure")])
def test_values_missing_for_an_unregistered_data_set_are_named(key: str, expected: str) -> None:
    with pytest.raises(UserError, match="`mine` is not a registered data set") as caught:
        resolve(Data(**{name: value for name, value in MINE.items() if name != key}), 3, None)
    assert caught.value.where == f"data.{key}"
    assert expected in caught.value.expected


@pytest.mark.parametrize(
    ("data", "found", "message"),
    [
        (Data(name="digits"), 9, "9 classes found, 10 expected"),
        (Data(name="digits", num_classes=9), 10, "10 classes found, 9 expected"),
        (Data(**MINE, num_classes=4), 5, "5 classes found, 4 expected"),
        (Data(**MINE, num_classes=4, classes=["a", "b"]), 2, "2 classes found, 4 expected"),
    ],
)
def test_another_number_of_classes_is_refused(data: Data, found: int, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve(data, found, None)
    assert caught.value.where == "data.num_classes"


def test_chosen_classes_set_their_number() -> None:
    assert resolve(Data(name="digits", classes=["3", "1"]), 2, None).classes == 2


def test_a_resize_below_the_registered_size_is_refused() -> None:
    with pytest.raises(UserError, match="200 is below the image size 224") as caught:
        resolve(Data(name="imagenette", resize=200), 10, None)
    assert caught.value.where == "data.resize"
