"""The sections, what a run needs of them, and which values belong to the identity of a result."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from delt_hpc.config.schema import (
    SECTIONS,
    STAGES,
    Config,
    Evaluate,
    Recover,
    Section,
    Select,
    Stage,
    Teacher,
    identity,
    is_free,
)

TRAINED = Config()
GIVEN = Config(teacher=Teacher(source="torchvision", weights="IMAGENET1K_V1"))
BEFORE_RECOVERY = ("data", "teacher", "squeeze", "rank", "select")
NEEDED: dict[Stage, tuple[str, ...]] = {
    "squeeze": ("data", "teacher", "squeeze"),
    "rank": ("data", "teacher", "squeeze", "rank"),
    "select": BEFORE_RECOVERY,
    "recover": (*BEFORE_RECOVERY, "recover"),
    "aggregate": (*BEFORE_RECOVERY, "recover"),
    "evaluate": (*BEFORE_RECOVERY, "recover", "evaluate"),
    "report": (*BEFORE_RECOVERY, "recover", "evaluate"),
}


def fields(key: str, *, free: bool) -> set[str]:
    return {f"{key}.{name}" for name, field in SECTIONS[key].model_fields.items() if is_free(field) == free}


@pytest.mark.parametrize("stage", STAGES)
def test_the_identity_of_a_stage_is_every_value_before_it_that_is_not_free(stage: Stage) -> None:
    wanted = {"seed"}.union(*(fields(key, free=False) for key in NEEDED[stage]))
    assert identity(TRAINED, stage).keys() == wanted


def test_no_field_is_forgotten() -> None:
    """A field is part of some identity, or it says that it is free."""
    known = set().union(*(identity(TRAINED, stage) for stage in STAGES))
    for key, section in SECTIONS.items():
        for name, field in section.model_fields.items():
            assert (f"{key}.{name}" in known) != is_free(field), f"{key}.{name}"
    for name, field in Config.model_fields.items():
        if name not in SECTIONS:
            assert (name in known) != is_free(field), name


def test_every_field_is_described() -> None:
    models: list[type[Section]] = [Config, *SECTIONS.values()]
    for model in models:
        for name, field in model.model_fields.items():
            assert field.description or name in SECTIONS, f"{model.__name__}.{name}"


def test_the_sections_are_the_stages_and_what_they_share() -> None:
    assert set(SECTIONS) == {"data", "teacher", "squeeze", "rank", "select", "recover", "evaluate", "machine"}


def test_free_values_change_no_identity() -> None:
    other = TRAINED.model_copy(
        update={
            "name": "other",
            "data": TRAINED.data.model_copy(update={"root": Path("elsewhere")}),
            "evaluate": Evaluate(students=["resnet18"], seeds=[1], arms=["random-hard"]),
            "machine": TRAINED.machine.model_copy(update={"device": "cpu", "workers": 0}),
        }
    )
    for stage in STAGES:
        assert identity(other, stage) == identity(TRAINED, stage)


def test_a_value_changes_its_own_stage_and_the_later_ones() -> None:
    other = Config(select=Select(ipc=11))
    changed = [stage for stage in STAGES if identity(other, stage) != identity(TRAINED, stage)]
    assert changed == ["select", "recover", "aggregate", "evaluate", "report"]
    assert identity(other, "select")["select.ipc"] == 11


def test_the_seed_changes_every_stage() -> None:
    other = Config(seed=1)
    assert all(identity(other, stage) != identity(TRAINED, stage) for stage in STAGES)


def test_how_a_teacher_would_be_trained_does_not_matter_where_it_is_given() -> None:
    assert not any(key.startswith("squeeze.") for stage in STAGES for key in identity(GIVEN, stage))
    assert identity(GIVEN, "squeeze")["teacher.weights"] == "IMAGENET1K_V1"


def test_an_identity_is_plain_json() -> None:
    config = Config(teacher=Teacher(source="checkpoint", checkpoint=Path("given/teacher.pt")))
    values = identity(config, "report")
    assert values["teacher.checkpoint"] == "given/teacher.pt"
    assert all(isinstance(value, str | int | float | list | None) for value in values.values())


def test_all_stages_run_unless_nothing_uses_a_ranking() -> None:
    assert TRAINED.stages == STAGES
    noise = Config(recover=Recover(init="noise"))
    assert noise.stages == ("squeeze", "recover", "aggregate", "evaluate", "report")
    compared = Config(recover=Recover(init="noise"), evaluate=Evaluate(arms=["distilled-soft", "selected-soft"]))
    assert compared.stages == STAGES


@pytest.mark.parametrize(
    ("iterations", "given", "length", "rounds"), [(4000, 500, 500, 8), (4000, None, 4000, 1), (120, 30, 30, 4)]
)
def test_rounds(iterations: int, given: int | None, length: int, rounds: int) -> None:
    recover = Recover(iterations=iterations, round_iterations=given)
    assert (recover.round_length, recover.rounds) == (length, rounds)


@pytest.mark.parametrize("section", list(SECTIONS))
def test_an_empty_section_is_its_defaults(section: str) -> None:
    assert Config.model_validate({section: None}) == Config()


@pytest.mark.parametrize("change", [{"seed": "0"}, {"seed": 0.0}, {"seed": True}, {"seed": None}, {"seed": -1}])
def test_the_seed_is_a_whole_number_from_zero(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate(change)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TRAINED.recover.lr = 1.0
