"""Networks of torchvision, timm and of the user's own functions, by name."""

import sys
from pathlib import Path

import pytest
import torch
from helpers.hooks_loss import assert_equal_to_hooks, randomised
from torch import nn

from delt_hpc.config.load import load_config
from delt_hpc.errors import UserError
from delt_hpc.models import weights
from delt_hpc.models.registry import build, check, has_batch_norm, teacher_names

OWN = """
import torch
from torch import nn

def plain(num_classes, width=4):
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)]
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), *head)

def with_values(num_classes):
    return plain(num_classes, int(torch.linspace(4, 8, 2).tolist()[0]))  # fails on the meta device

def without_batch_norm(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))

def ten_classes(num_classes):
    return plain(10)

def no_argument():
    return plain(10)

def no_module(num_classes):
    return num_classes

a_number = 3
"""


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's package `own` with the module `own.nets`, and `own.broken`, which cannot be imported."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").touch()
    (tmp_path / "own" / "nets.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "own" / "broken.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "own"]:
        monkeypatch.delitem(sys.modules, name)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def seeded_build(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build(name, 7, 32)


def test_torchvision_s_networks_have_two_names() -> None:
    assert same_weights(seeded_build("torchvision/resnet18"), seeded_build("resnet18"))
    assert weights.check_torchvision("torchvision/resnet18", "IMAGENET1K_V1", 1000).name == "IMAGENET1K_V1"


@pytest.mark.parametrize(
    "name", ["timm/resnet10t", "own.nets:plain", "own.nets:with_values", "torchvision/regnet_x_400mf"]
)
def test_a_network_has_an_output_for_every_class_and_can_be_a_teacher(name: str) -> None:
    state = torch.get_rng_state()
    check(name, 7, 32, where="teacher.model", needs_batch_norm=True)
    assert torch.equal(torch.get_rng_state(), state)
    network = seeded_build(name)
    assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert same_weights(network, seeded_build(name))


@pytest.mark.parametrize("name", ["timm/resnet10t", "timm/resnet18d", "timm/efficientnet_lite0"])
def test_a_fused_teacher_of_timm_equals_hooks(name: str) -> None:
    torch.manual_seed(0)
    fused = assert_equal_to_hooks(randomised(build(name, 10, 32)).double(), 32)
    assert not fused.trace_error


REFUSED = [
    ("timm/resnet18x", "timm has no network `resnet18x`", "resnet18"),
    ("torchvision/resnet-18", "`torchvision/resnet-18` is not a classifier of torchvision", "resnet18"),
    ("torchvision/convnet3", "`torchvision/convnet3` is not a classifier of torchvision", "convnext"),
    ("own.nowhere:net", "the module `own.nowhere` cannot be imported: ModuleNotFoundError", "PYTHONPATH"),
    ("own.broken:net", "the module `own.broken` cannot be imported: ZeroDivisionError", "PYTHONPATH"),
    ("own.nets:nothing", "`own.nets` has no function `nothing`", "def nothing(num_classes: int)"),
    ("own.nets:a_number", "`own.nets` has no function `a_number`", "def a_number"),
    ("own.nets:no_argument", r"`own.nets:no_argument\(num_classes=7\)` failed: TypeError", "def no_argument"),
    ("own.nets:no_module", "`own.nets:no_module` returned a int", "a torch.nn.Module"),
    ("own.nets:ten_classes", r"`own.nets:ten_classes` returns \[2, 10\] for two images", r"[2, 7]"),
    ("own.nets:without_batch_norm", "`own.nets:without_batch_norm` has no BatchNorm2d", "resnet18"),
    ("timm/vit_tiny_patch16_224", "`timm/vit_tiny_patch16_224` has no BatchNorm2d", "resnet18"),
]


@pytest.mark.parametrize(("name", "message", "help_text"), REFUSED, ids=[name for name, _, _ in REFUSED])
def test_what_is_wrong_with_a_teacher_is_said_before_work_starts(name: str, message: str, help_text: str) -> None:
    with pytest.raises(UserError, match=f"^teacher.model: {message}") as caught:
        check(name, 7, 32, where="teacher.model", needs_batch_norm=True)
    assert help_text in str(caught.value)


def test_a_student_that_accepts_another_size_only() -> None:
    with pytest.raises(UserError, match=r"students: `timm/vit_tiny_patch16_224` does not accept images of 32 x 32"):
        check("timm/vit_tiny_patch16_224", 7, 32, where="evaluate.students")


def test_without_timm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"`timm/resnet18` requires timm\n  to do: .*delt-hpc\[timm\]"):
        build("timm/resnet18", 10, 32)


def test_teachers_are_the_networks_with_batch_norm() -> None:
    found = set(teacher_names())
    assert {"convnet3", "resnet18", "resnet18-small-stem", "vgg11_bn", "regnet_y_128gf", "mobilenet_v2"} <= found
    assert not {"vgg11", "alexnet", "vit_b_16", "convnext_tiny", "swin_t"} & found
    assert not has_batch_norm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))


@pytest.mark.parametrize("name", ["timm/resnet18.a1_in1k", "torchvision/resnet18", "own.nets:plain", "nets:plain"])
def test_names_that_a_configuration_accepts(name: str) -> None:
    config = load_config("digits", [f"teacher.model={name}", f"evaluate.students=[{name}]"])
    assert (config.teacher.model, config.evaluate.students) == (name, [name])


@pytest.mark.parametrize(
    "name", ["jax/resnet18", "timm/", "a:b:c", "own.nets:", ":plain", "own/nets:plain", "../x", "a b"]
)
def test_names_that_a_configuration_refuses(name: str) -> None:
    with pytest.raises(UserError, match=r"teacher.model: '.*': expected a name that `delt-hpc models` lists"):
        load_config("digits", [f"teacher.model='{name}'"])


def test_students_with_the_same_folder_are_refused() -> None:
    with pytest.raises(UserError, match=r"share the folders evaluate/timm-resnet18-\*"):
        load_config("digits", ["evaluate.students=[timm/resnet18, timm-resnet18]"])
