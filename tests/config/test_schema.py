"""Which options belong to the identity of a result, and which stages a run needs."""

from itertools import pairwise
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
    Teacher,
    identity,
    is_free,
)

TRAINED = Config()
GIVEN = Config(teacher=Teacher(source="torchvision", weights="IMAGENET1K_V1"))


def test_the_identity_of_a_stage_contains_that_of_the_stages_before_it() -> None:
    """Aggregate and report have no options of their own."""
    identities = [identity(TRAINED, stage) for stage in STAGES]
    assert all(before.items() <= after.items() for before, after in pairwise(identities))
    own = [after.keys() - before.keys() for before, after in pairwise(identities)]
    assert [{key.split(".")[0] for key in keys} for keys in own] == [
        {"rank"}, {"select"}, {"recover"}, set(), {"evaluate"}, set(),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_no_field_is_forgotten() -> None:
    """Every field is part of an identity, at least where it has not its default, or marked as free."""
    known = set().union(*(identity(TRAINED, stage) for stage in STAGES))
    for key, section in SECTIONS.items():
        for name, field in section.model_fields.items():
            changed = TRAINED.model_copy(update={key: section.model_construct(**{name: "not the default"})})
            found = known if is_free(field) else known | identity(changed, "evaluate").keys()
            assert (f"{key}.{name}" in found) != is_free(field), f"{key}.{name}"
    for name, field in Config.model_fields.items():
        if name not in SECTIONS:
            assert (name in known) != is_free(field), name


def test_an_option_that_is_younger_than_run_folders_changes_no_identity_at_its_default() -> None:
    rank = TRAINED.rank
    assert "rank.candidates" not in identity(TRAINED, "rank")
    crops = TRAINED.model_copy(update={"rank": rank.model_copy(update={"candidates": "crops", "pool": rank.pool})})
    assert identity(crops, "rank") == identity(TRAINED, "rank") | {"rank.candidates": "crops"}


def test_every_field_is_described() -> None:
    models: list[type[Section]] = [Config, *SECTIONS.values()]
    for model in models:
        for name, field in model.model_fields.items():
            assert field.description or name in SECTIONS, f"{model.__name__}.{name}"


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


def test_deterministic_recovery_fixes_what_changes_the_last_bits() -> None:
    def with_kernels(kernels: str, *, deterministic: bool) -> Config:
        recover = TRAINED.recover.model_copy(update={"kernels": kernels, "deterministic": deterministic})
        return TRAINED.model_copy(update={"recover": recover})

    for deterministic in (False, True):
        one, other = (
            identity(with_kernels(kernels, deterministic=deterministic), "recover") for kernels in ("torch", "triton")
        )
        assert (one != other) == deterministic
        assert {"recover.segments", "recover.compile"} <= one.keys() or not deterministic
    assert identity(with_kernels("torch", deterministic=True), "rank") == identity(TRAINED, "rank")


def test_a_value_changes_the_identity_of_its_stage_and_the_later_ones() -> None:
    other = Config(select=Select(ipc=11))
    changed = [stage for stage in STAGES if identity(other, stage) != identity(TRAINED, stage)]
    assert changed == ["select", "recover", "aggregate", "evaluate", "report"]
    assert identity(other, "select")["select.ipc"] == 11


@pytest.mark.parametrize(
    "changed",
    [
        {"soft_loss": "mse_ce"},
        {"ce_weight": 0.5},
        {"teacher_statistics": "batch"},
        {"shuffle_patches": 2},
        {"mirror": False},
        {"labels": "stored"},
        {"label_format": "int8"},
        {"label_top_k": 20},
        {"epochs_kept": 30},
    ],
)
def test_a_later_option_enters_the_identity_where_it_is_not_the_default(changed: dict[str, Any]) -> None:
    other = identity(Config(evaluate=Evaluate(**changed)), "evaluate")
    assert other == identity(TRAINED, "evaluate") | {f"evaluate.{key}": value for key, value in changed.items()}


def test_the_seed_changes_every_stage() -> None:
    other = Config(seed=1)
    assert all(identity(other, stage) != identity(TRAINED, stage) for stage in STAGES)


def test_training_options_do_not_matter_for_a_given_teacher() -> None:
    assert not any(key.startswith("squeeze.") for stage in STAGES for key in identity(GIVEN, stage))
    assert identity(GIVEN, "squeeze")["teacher.weights"] == "IMAGENET1K_V1"


def test_an_identity_is_plain_json() -> None:
    config = Config(teacher=Teacher(source="checkpoint", checkpoint=Path("given/teacher.pt")))
    values = identity(config, "report")
    assert values["teacher.checkpoint"] == "given/teacher.pt"
    assert all(isinstance(value, str | int | float | list | None) for value in values.values())


def test_all_stages_run_unless_nothing_uses_a_ranking() -> None:
    assert TRAINED.stages == STAGES
    noise = Config(recover=Recover(init="noise"), evaluate=Evaluate(arms=["distilled-soft", "full-soft"]))
    assert noise.stages == ("squeeze", "recover", "aggregate", "evaluate", "report")
    compared = Config(recover=Recover(init="noise"), evaluate=Evaluate(arms=["distilled-soft", "selected-soft"]))
    assert compared.stages == STAGES


@pytest.mark.parametrize(
    ("iterations", "given", "length", "rounds"), [(4000, 500, 500, 8), (4000, None, 4000, 1), (120, 30, 30, 4)]
)
def test_rounds(iterations: int, given: int | None, length: int, rounds: int) -> None:
    recover = Recover(iterations=iterations, round_iterations=given)
    assert (recover.round_length, recover.rounds) == (length, rounds)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TRAINED.recover.lr = 1.0
