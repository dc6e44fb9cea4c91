"""Evaluation protocols: presets of `evaluate` below the file, and above it where an override names them."""

from pathlib import Path

import pytest

from delt_hpc.config import methods, protocols
from delt_hpc.config.load import dump_config, load_config
from delt_hpc.config.schema import STAGES, Config, Evaluate, identity
from delt_hpc.errors import UserError


@pytest.mark.parametrize("name", protocols.names())
def test_every_protocol_is_described_and_its_values_are_options(name: str) -> None:
    described = methods.read_preset(protocols.FOLDER / f"{name}.yaml")
    assert described.paper and described.paper in described.sentence and described.title in described.sentence
    evaluate = load_config("digits", [f"evaluate.protocol={name}"]).evaluate
    assert evaluate.model_dump(include=set(described.values)) == described.values


def test_the_protocols_of_the_papers() -> None:
    assert protocols.names() == ("delt", "edc", "fadrm", "rded", "sre2l")


def test_the_preset_of_delt_is_the_defaults() -> None:
    default = Evaluate().model_dump()
    assert default | protocols.values("delt") == default | {"temperature": 20.0}


def test_a_file_wins_over_the_protocol_it_names(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("evaluate: {protocol: rded, epochs: 20}", encoding="utf-8")
    config = load_config(str(file))
    assert (config.evaluate.shuffle_patches, config.evaluate.epochs) == (2, 20)
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(str(file)) == config


def test_a_protocol_that_an_override_names_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("evaluate: {protocol: rded, epochs: 20, batch_size: 7}", encoding="utf-8")
    evaluate = load_config(str(file), ["evaluate.protocol=fadrm", "evaluate.lr=0.5"]).evaluate
    assert (evaluate.epochs, evaluate.batch_size, evaluate.lr) == (300, 16, 0.5)
    assert (evaluate.shuffle_patches, evaluate.teacher_statistics) == (1, "batch")


def test_the_name_of_the_protocol_changes_no_identity() -> None:
    named = Config(evaluate=Evaluate(protocol="edc"))
    assert all(identity(named, stage) == identity(Config(), stage) for stage in STAGES)


def test_an_unknown_protocol() -> None:
    with pytest.raises(UserError, match=r"evaluate\.protocol: 'fadr': there is no such protocol; did you mean `fadrm`"):
        load_config("digits", ["evaluate.protocol=fadr"])
