"""Every recipe is a valid configuration; the tables of the paper and the presets of the methods."""

import itertools
from pathlib import Path

import pytest

from delt_hpc.config import methods, recipes
from delt_hpc.config.load import load_config
from delt_hpc.config.schema import Config
from delt_hpc.data.catalog.specs import SPECS
from delt_hpc.errors import UserError
from delt_hpc.models import registry

SMALL = ("cifar10", "cifar100", "tiny-imagenet")
LARGE = ("imagenette", "imagewoof", "imagenet-100", "imagenet-1k")
NETWORKS = ("resnet18", "resnet101", "mobilenet_v2", "convnet")
IPC = (1, 10, 50, 100)
TABLE = [f"{data}-{network}-ipc{ipc}" for data, network, ipc in itertools.product((*SMALL, *LARGE), NETWORKS, IPC)]
LISTED = recipes.names()


def test_every_row_of_the_papers_tables_has_a_recipe() -> None:
    assert sorted(recipe.name for recipe in LISTED) == sorted(["digits", "fashion-mnist", *TABLE])
    assert [recipe.name for recipe in LISTED[:2]] == ["digits", "fashion-mnist"]


def test_every_recipe_is_valid_and_matches_its_name() -> None:
    for recipe in LISTED:
        config = load_config(recipe.name)
        assert (config.name, config.data.name, config.select.ipc) == (recipe.name, recipe.data, recipe.ipc)
        assert config.data.name in SPECS
        assert config.evaluate.students == [config.teacher.model]
        if recipe.network:
            assert config.teacher.model.startswith(recipe.network)
            # Only the rounds differ from the published recovery, which is the default.
            rounds = None if recipe.ipc == 1 else 500
            assert config.recover == Config().recover.model_copy(update={"round_iterations": rounds})


def test_every_recipes_network_fits_its_images_and_has_batch_norm() -> None:
    used = set()
    for recipe in LISTED:
        config = load_config(recipe.name)
        spec = SPECS[config.data.name]
        used.add((config.teacher.model, spec.classes, config.data.size or spec.size))
    for model, classes, size in used:
        registry.check(model, classes, size, where="teacher.model", needs_batch_norm=True)


@pytest.mark.parametrize(
    ("data", "batches"),
    [
        ("cifar10", (10, 50, 100, 100)),
        ("cifar100", (20, 100, 200, 200)),
        ("tiny-imagenet", (100, 100, 100, 100)),
        ("imagenette", (10, 50, 100, 100)),
        ("imagewoof", (10, 50, 100, 100)),
        ("imagenet-100", (20, 100, 200, 200)),
        ("imagenet-1k", (20, 100, 200, 200)),
    ],
)
def test_evaluation_batches_are_the_published_ones(data: str, batches: tuple[int, ...]) -> None:
    for network, (ipc, batch) in itertools.product(NETWORKS, zip(IPC, batches, strict=True)):
        expected = batch
        if network == "resnet101" and data in ("imagenet-100", "imagenet-1k"):
            expected = batch // 2
        if network == "convnet" and data == "cifar100":
            expected = 25
        evaluate = load_config(f"{data}-{network}-ipc{ipc}").evaluate
        assert evaluate.batch_size == expected
        assert evaluate.batch_size <= ipc * SPECS[data].classes
        rate = {"mobilenet_v2": 2.5e-3}.get(network, 2e-3 if expected == 25 else 1e-3)
        assert evaluate.lr == rate


@pytest.mark.parametrize(
    ("data", "model", "size"),
    [
        ("cifar10", "convnet3", None),
        ("cifar100", "convnet3", None),
        ("tiny-imagenet", "convnet4", None),
        ("imagenette", "convnet5", 128),
        ("imagewoof", "convnet5", 128),
        ("imagenet-100", "convnet6", 128),
        ("imagenet-1k", "convnet4", 64),
    ],
)
def test_convnets_have_the_published_depth_and_size(data: str, model: str, size: int | None) -> None:
    config = load_config(f"{data}-convnet-ipc10")
    assert (config.teacher.model, config.data.size, config.teacher.source) == (model, size, "train")


@pytest.mark.parametrize(("data", "network"), [*itertools.product((*SMALL, *LARGE), NETWORKS[:3])])
def test_teachers_of_small_images_have_a_small_stem_and_those_of_imagenet_torchvision_weights(
    data: str, network: str
) -> None:
    config = load_config(f"{data}-{network}-ipc50")
    assert config.teacher.model == network + ("-small-stem" if data in SMALL else "")
    ready = ("torchvision", "IMAGENET1K_V1") if data == "imagenet-1k" else ("train", None)
    assert (config.teacher.source, config.teacher.weights) == ready
    assert config.data.size is None


@pytest.mark.parametrize("method", ["cda", "sre2l"])
def test_a_preset_turns_a_recipe_into_its_method(method: str) -> None:
    recover = load_config("cifar10-resnet18-ipc50", [f"method={method}"]).recover
    assert (recover.rounds, recover.batching, recover.batch_size) == (1, "mixed", 100)
    noise = method == "sre2l"
    assert recover.init == ("noise" if noise else "selected")
    assert recover.crop_schedule == ("constant" if noise else "cosine")


def test_the_preset_of_delt_is_the_defaults() -> None:
    assert methods.load("delt").values == {}
    assert load_config("cifar10-resnet18-ipc50", ["method=delt"]).recover == Config().recover


def test_loading_gives_a_fresh_copy() -> None:
    name = "cifar10-resnet18-ipc50"
    first = recipes.load(name)
    first["evaluate"]["students"].append("other")
    first["squeeze"]["epochs"] = 1
    assert recipes.load(name)["evaluate"]["students"] == ["resnet18-small-stem"]
    assert recipes.load(name)["squeeze"]["epochs"] == 200


@pytest.mark.parametrize("name", ["digits", "imagenet-1k-resnet101-ipc10", "cifar100-convnet-ipc1"])
def test_the_text_is_a_file_that_loads_to_the_same(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(recipes.text(name), encoding="utf-8")
    assert load_config(str(file)) == load_config(name)


@pytest.mark.parametrize(
    ("asked", "close"),
    [
        ("digit", "digits"),
        ("cifar10-resnet18-ipc5", "cifar10-resnet18-ipc50"),
        ("imagenet1k-resnet18-ipc10", "imagenet-1k"),
    ],
)
def test_an_unknown_name_gets_close_ones(asked: str, close: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.load(asked)
    assert close in caught.value.expected
    assert "`delt-hpc recipes` lists them" in caught.value.remedy
    with pytest.raises(UserError, match="there is no recipe"):
        recipes.text(asked)


def test_a_name_unlike_all_others_still_gets_help() -> None:
    with pytest.raises(UserError, match="there is no recipe `???`".replace("?", r"\?")) as caught:
        recipes.load("???")
    assert "a YAML file" in caught.value.expected
