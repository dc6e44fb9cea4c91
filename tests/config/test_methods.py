"""Methods: every shipped file is a valid preset, and a new file is all that a new method takes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from delt_hpc.config import methods
from delt_hpc.config.load import dump_config, load_config
from delt_hpc.config.schema import Config
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.data.dataset import Dataset
from delt_hpc.data.index import ClassMap, Index
from delt_hpc.distilled import card
from delt_hpc.errors import UserError

FADE = """\
title: Fade
paper: "2501.00001"
sentence: "The method is Fade: images start from noise."
values:
  recover: {init: noise, lr: 0.125}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of methods with a single one, `fade`."""
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "fade.yaml").write_text(FADE, encoding="utf-8")
    monkeypatch.setattr(methods, "FOLDER", tmp_path / "methods")
    return tmp_path / "methods"


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_described_and_its_values_are_options(name: str) -> None:
    method = methods.load(name)
    assert method.title in method.sentence
    assert method.paper is None or method.paper in method.sentence
    loaded = load_config("digits", [f"method={name}"])
    for section, values in method.values.items():
        assert getattr(loaded, section).model_dump(include=set(values)) == values


@pytest.mark.usefixtures("folder")
def test_a_new_file_is_a_new_method(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("method: fade\nrecover: {iterations: 1000}", encoding="utf-8")
    config = load_config(str(file))
    assert (config.method, config.recover.init, config.recover.lr) == ("fade", "noise", 0.125)
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(str(file)) == config
    assert load_config(str(file), ["recover.lr=0.5"]).recover.lr == 0.5


@pytest.mark.usefixtures("folder")
def test_the_card_cites_a_new_method() -> None:
    index = Index(Path("train"), ("a/0.png",), np.zeros(1, dtype=np.int64))
    dataset = Dataset(replace(SPECS["digits"]), ClassMap(("a",), ("a",)), index, index)
    text = card.render(Config(method="fade"), dataset, {"model": "m", "weights": "w", "val_accuracy": None})
    assert "| method | Fade (arXiv 2501.00001), delt-hpc" in text


@pytest.mark.usefixtures("folder")
def test_methods_that_are_not_in_the_folder_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("method: fad", encoding="utf-8")
    with pytest.raises(UserError, match="method: 'fad': there is no such method; did you mean `fade`\\? allowed here"):
        load_config(str(tmp_path / "mine.yaml"))
    with pytest.raises(UserError, match="method: delt: there is no such method; allowed here: fade"):
        methods.load("delt")


def test_a_method_without_a_paper_is_cited_by_its_title(folder: Path) -> None:
    (folder / "plain.yaml").write_text("title: Plain\nsentence: Nothing.\nvalues: {}", encoding="utf-8")
    assert methods.load("plain").citation == "Plain"


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", "title: A\nsentence: B", "title: A\nsentence: B\nvalues: 3", FADE + "years: 3", "titel: A"]
)
def test_a_file_that_does_not_describe_a_method_is_named(text: str, folder: Path) -> None:
    (folder / "broken.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"broken.yaml: (does not describe a method|is not valid YAML)"):
        methods.load("broken")


def test_loading_gives_a_fresh_copy() -> None:
    methods.load("cda").values["recover"]["batching"] = "by_class"
    assert methods.load("cda").values["recover"]["batching"] == "mixed"
