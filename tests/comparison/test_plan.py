"""Which runs a comparison consists of, and that they differ in nothing but what is compared."""

from pathlib import Path

import pytest

from delt_hpc.comparison.plan import entries
from delt_hpc.config import methods
from delt_hpc.config.load import load_config
from delt_hpc.config.schema import STAGES, identity
from delt_hpc.errors import UserError


def test_real_images_come_first_and_then_the_methods() -> None:
    found = entries("digits", methods=["random", "delt", "selected", "sre2l"])
    assert [entry.name for entry in found] == ["real", "delt", "sre2l"]
    real, delt, sre2l = found
    assert real.stages == ("squeeze", "rank", "select", "evaluate")
    assert delt.stages == STAGES
    assert sre2l.stages == ("squeeze", "recover", "aggregate", "evaluate", "report")
    assert real.config.evaluate.arms == ["random-soft", "selected-soft", "random-hard", "selected-hard"]
    assert delt.config.evaluate.arms == ["distilled-soft", "distilled-hard"]
    assert sre2l.config.recover == load_config("digits", ["method=sre2l"]).recover
    assert {entry.config.name for entry in found} == {"digits-real", "digits-delt", "digits-sre2l"}


def test_without_a_list_the_method_is_that_of_the_configuration() -> None:
    found = entries("digits", ["method=cda"])
    assert [entry.name for entry in found] == ["real", "cda"]
    assert found[1].config.recover == load_config("digits", ["method=cda"]).recover


def test_a_method_cannot_change_the_teacher_or_the_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("plain", "{}"),
        ("sly", "{evaluate: {epochs: 999}, squeeze: {epochs: 99}, recover: {lr: 0.5}}"),
    ):
        (tmp_path / f"{name}.yaml").write_text(f"title: A\nsentence: B\nvalues: {text}", encoding="utf-8")
    monkeypatch.setattr(methods, "FOLDER", tmp_path)
    file = tmp_path / "c.txt.yaml"
    file.write_text("method: plain\nevaluate: {epochs: 60}\nsqueeze: {epochs: 12}", encoding="utf-8")
    real, own = (entry.config for entry in entries(str(file), methods=["sly"]))
    assert (own.evaluate.epochs, own.squeeze.epochs, own.recover.lr) == (60, 12, 0.5)
    assert identity(own, "rank") == identity(real, "rank")


def test_a_method_may_score_other_candidates() -> None:
    real, rded, delt = (entry.config for entry in entries("digits", methods=["rded", "delt"]))
    assert (real.rank.candidates, rded.rank.candidates) == ("images", "crops")
    assert identity(delt, "select") == identity(real, "select")
    assert rded.recover.iterations == 0


def test_every_point_of_a_sweep_and_real_images_where_they_differ() -> None:
    found = entries("digits", methods=["delt"], sweep=["recover.lr=0.05,0.25", "select.ipc=1,3"])
    assert [entry.name for entry in found] == [
        "real-select.ipc=1",
        "delt-recover.lr=0.05-select.ipc=1",
        "real-select.ipc=3",
        "delt-recover.lr=0.05-select.ipc=3",
        "delt-recover.lr=0.25-select.ipc=1",
        "delt-recover.lr=0.25-select.ipc=3",
    ]
    last = found[-1]
    assert (last.config.recover.lr, last.config.select.ipc) == (0.25, 3)
    assert last.point == ("recover.lr=0.25", "select.ipc=3")


def test_real_images_do_not_depend_on_recovery() -> None:
    one, other = (entries("digits", ["recover.lr=0.125"] * changed)[0] for changed in (False, True))
    assert identity(one.config, "evaluate") == identity(other.config, "evaluate")


def test_values_of_a_sweep_may_be_lists_words_and_protocols() -> None:
    swept = ["evaluate.crop_scale=[0.25, 1.0],[0.5, 1.0]", "recover.init=selected,noise"]
    crops = {tuple(entry.config.evaluate.crop_scale) for entry in entries("digits", methods=["delt"], sweep=swept)}
    assert crops == {(0.25, 1.0), (0.5, 1.0)}
    found = entries("digits", methods=[], sweep=["evaluate.protocol=delt,rded"])
    assert [entry.name for entry in found] == ["real-evaluate.protocol=delt", "real-evaluate.protocol=rded"]
    assert [entry.config.evaluate.shuffle_patches for entry in found] == [1, 2]


@pytest.mark.parametrize(("count", "seeds"), [(1, [7]), (2, [7, 1]), (4, [7, 1, 2, 3])])
def test_seeds_go_on_after_those_of_the_configuration(count: int, seeds: list[int]) -> None:
    given = ["evaluate.seeds=[7, 1]"]
    assert {tuple(entry.config.evaluate.seeds) for entry in entries("digits", given, seeds=count)} == {tuple(seeds)}


def test_without_augmentation_only_soft_labels_are_trained_again() -> None:
    found = entries("digits", methods=["delt"], without_augmentation=True)
    assert [entry.name for entry in found] == ["real", "delt", "real-plain", "delt-plain"]
    plain = found[-1].config.evaluate
    assert (plain.mix, plain.randaugment, plain.crop_scale, plain.mirror) == ("none", False, [1.0, 1.0], False)
    assert plain.arms == ["distilled-soft"]
    assert identity(found[-1].config, "aggregate") == identity(found[1].config, "aggregate")


def test_an_external_set_needs_a_teacher_and_students(tmp_path: Path) -> None:
    found = entries("digits", methods=[], external={"mtt": tmp_path})
    assert [entry.name for entry in found] == ["real", "mtt"]
    assert found[1].stages == ("squeeze", "evaluate")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["delt", "dellt"]}, r"--methods delt,dellt: dellt: there is no such method; did you mean `delt`"),
        ({"methods": ["delt", "delt"]}, r"--methods: delt more than once"),
        ({"overrides": ["method=cda"], "methods": ["delt"]}, r"--set method=cda: contradicts --methods"),
        ({"sweep": ["recover.lr"]}, r"--sweep recover.lr: is not a sweep"),
        ({"sweep": ["recover.lr="]}, r"--sweep recover.lr=: is not a sweep"),
        ({"sweep": ["recover.lr=[1"]}, r"is not a sweep"),
        ({"sweep": ["recover.lrr=1,2"]}, r"--set recover.lrr=1: recover.lrr: unknown key; did you mean `lr`"),
        ({"sweep": ["recover.lr=0.1,0.1"]}, r"delt-recover.lr=0.1: stands for two runs"),
        ({"sweep": ["evaluate.seeds=1,2"]}, r"--sweep evaluate.seeds=1,2: changes no result"),
        ({"sweep": ["method=cda,delt"]}, r"--sweep method=cda,delt: cannot be swept"),
        ({"external": {"delt": Path()}}, r"--external delt: is taken by a method"),
        ({"external": {"random": Path()}}, r"--external random: is taken by a method"),
        ({"external": {"a/b": Path()}}, r"--external a/b: cannot name a folder"),
        ({"external": {"mtt": Path("nowhere")}}, r"--external mtt=nowhere: there is no such folder or file"),
    ],
)
def test_what_cannot_be_compared(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        entries("digits", **arguments)  # type: ignore[arg-type]
