"""State dicts from files of every usual form; only weights are read, and what does not fit is named."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from delt_hpc.errors import UserError
from delt_hpc.models import weights
from delt_hpc.models.registry import build

STATE = OrderedDict({"0.weight": torch.arange(6.0).view(2, 3), "0.bias": torch.ones(2), "1.weight": torch.zeros(1)})


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def renamed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: tensor for key, tensor in STATE.items()}


def saved(folder: Path, content: Any, name: str = "file.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


# --- reading

WRAPPED: dict[str, Any] = {
    "bare": STATE,
    "model": {"model": STATE},
    "state_dict": {"state_dict": STATE, "epoch": 3, "best_acc1": 71.0, "optimizer": {"state": {}, "param_groups": []}},
    "model_state_dict": {"model_state_dict": STATE},
    "module.": renamed("module."),
    "_orig_mod.": renamed("_orig_mod."),
    "module._orig_mod.": renamed("module._orig_mod."),
    "_orig_mod.module.": renamed("_orig_mod.module."),
    "model, module.": {"model": renamed("module."), "model_ema": {"other": torch.ones(1)}},
    "model, state_dict": {"model": {"state_dict": STATE}},
}


@pytest.mark.parametrize("form", list(WRAPPED))
def test_the_usual_wrappers_are_removed(form: str, tmp_path: Path) -> None:
    assert same(weights.read(saved(tmp_path, WRAPPED[form])), STATE)


@pytest.mark.parametrize("name", ["file.pt", "file.pth", "file.tar", "file"])
def test_torch_s_format_with_any_file_name(name: str, tmp_path: Path) -> None:
    assert same(weights.read(saved(tmp_path, STATE, name)), STATE)


def test_torch_s_old_format(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(weights.read(tmp_path / "old.pth"), STATE)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_safetensors(prefix: str, tmp_path: Path) -> None:
    save_file(renamed(prefix), tmp_path / "file.safetensors")
    assert same(weights.read(tmp_path / "file.safetensors"), STATE)


def test_a_prefix_of_only_some_keys_is_kept(tmp_path: Path) -> None:
    state = {"module.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert same(weights.read(saved(tmp_path, state)), state)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    shared = torch.arange(12.0).view(3, 4)
    state = {"a": shared, "b": shared.t(), "steps": torch.tensor(5), "half": torch.ones(2, dtype=torch.bfloat16)}
    weights.write(tmp_path / "new" / "file.safetensors", state)
    assert same(weights.read(tmp_path / "new" / "file.safetensors"), state)


# --- refused files


class Malicious:
    """Opens a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("old", [False, True])
def test_a_malicious_pickle_is_refused_and_not_executed(old: bool, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    content = {"state_dict": STATE, "args": Malicious(trace)}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError, match=r"bad\.pth: contains more than weights \(.*open\)") as caught:
        weights.read(tmp_path / "bad.pth")
    assert "weights_only" not in str(caught.value), "torch's own advice is to execute it"
    assert "state_dict()" in caught.value.remedy
    assert not trace.exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)["args"].close()
    assert trace.exists(), "unpickling the file would have executed it"


def test_a_bare_malicious_pickle_is_not_executed(tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "trace"), protocol=2))
    with pytest.raises(UserError, match=r"bad\.pt"):
        weights.read(tmp_path / "bad.pt")
    assert not (tmp_path / "trace").exists()


def test_a_whole_network_is_more_than_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"contains more than weights \(torch\.nn\.modules\.linear\.Linear\)"):
        weights.read(saved(tmp_path, nn.Linear(2, 2)))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path, STATE).read_bytes()
    torch.save(STATE, tmp_path / "file.pt", _use_new_zipfile_serialization=False)
    old = (tmp_path / "file.pt").read_bytes()
    cut = [whole[:-1], whole[:200], old[:100], old[:-8]]
    for content in [*cut, b"", b"hello world", b"<!DOCTYPE html>", b"e\xea", b"r", b"."]:
        (tmp_path / "file.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"file\.pt: is damaged, or not a file of weights"):
            weights.read(tmp_path / "file.pt")


@pytest.mark.parametrize("content", [b"", b"abc", bytes(100), b"\x02\0\0\0\0\0\0\0{}x"])
def test_damaged_safetensors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"file\.safetensors: cannot be read as weights"):
        weights.read(tmp_path / "file.safetensors")


@pytest.mark.parametrize("name", ["none.pt", "none.safetensors"])
def test_a_missing_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        weights.read(tmp_path / name)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read as weights"):
        weights.read(tmp_path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"epoch": 3, "weights": STATE}, "contains no state dict; its keys are 'epoch', 'weights'"),
        ({"epoch": 3, **STATE}, "contains no state dict; its keys are 'epoch', '0.weight'"),
        ({}, "contains no state dict"),
        ({"model": {}}, "contains no state dict"),
        (torch.ones(3), "contains a Tensor"),
        ([STATE], "contains a list"),
    ],
)
def test_content_without_a_state_dict(content: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        weights.read(saved(tmp_path, content))
    assert expected in caught.value.what


# --- fitting


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10))


def test_a_state_is_loaded_completely() -> None:
    source, target = network(), network()
    source(torch.randn(5, 3, 1, 1))
    weights.fit(target, dict(source.state_dict()), "file.pt")
    assert same(target.state_dict(), source.state_dict())


def test_the_step_counter_of_batch_norm_may_be_missing() -> None:
    state = {key: tensor for key, tensor in network().state_dict().items() if "num_batches" not in key}
    target = network()
    weights.fit(target, state, "file.pt")
    assert same({key: target.state_dict()[key] for key in state}, state)


def test_half_precision_becomes_the_network_s() -> None:
    state, target = dict(network().half().state_dict()), network()
    weights.fit(target, state, "file.pt")
    assert all(p.dtype == torch.float32 for p in target.parameters())


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("0.weight", torch.full((4, 3, 1, 1), float("nan")), "0.weight contains NaN or infinite values"),
        ("3.bias", torch.full((10,), float("inf")), "3.bias contains NaN or infinite values"),
        ("1.running_var", torch.tensor([1.0, -0.1, 1.0, 1.0]), "1.running_var contains negative variances"),
        ("0.weight", torch.ones(4, 3, 1, 1, dtype=torch.int8), "0.weight contains int8 instead of floating-point"),
    ],
)
def test_values_that_no_network_has_are_refused(key: str, value: torch.Tensor, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        weights.fit(network(), network().state_dict() | {key: value}, "file.pt")
    assert expected in caught.value.what
    assert caught.value.where == "file.pt"


def test_every_key_that_does_not_fit_is_named() -> None:
    target = network()
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    state = {key: torch.full_like(tensor, 7) for key, tensor in before.items()}
    del state["1.running_mean"]
    state["fc.bias"] = torch.ones(3)
    state["3.weight"], state["3.bias"] = torch.ones(1000, 4), torch.ones(1000)
    with pytest.raises(UserError) as caught:
        weights.fit(target, state, "given/file.pt")
    assert str(caught.value).splitlines()[:4] == [
        "given/file.pt: the weights do not fit the network:",
        "    missing: 1.running_mean",
        "    not in the network: fc.bias",
        "    other shape: 3.weight is [1000, 4], expected [10, 4], 3.bias is [1000], expected [10]",
    ]
    assert "teacher.model" in caught.value.remedy
    assert same(target.state_dict(), before), "a network is not half loaded"


def test_many_keys_are_counted() -> None:
    with pytest.raises(UserError, match=r"missing: .*, \.\.\. and \d+ more"):
        weights.fit(build("resnet18", 10, 32), dict(STATE), "file.pt")


@pytest.mark.parametrize("name", ["convnet3", "mnasnet0_5", "shufflenet_v2_x0_5"])
def test_a_network_s_own_weights_fit_through_a_file(name: str, tmp_path: Path) -> None:
    source, target = build(name, 4, 32), build(name, 4, 32)
    weights.write(tmp_path / "file.safetensors", source.state_dict())
    weights.fit(target, weights.read(tmp_path / "file.safetensors"), "file.safetensors")
    assert same(target.state_dict(), source.state_dict())


# --- torchvision's


def test_torchvision_s_weights_by_name() -> None:
    member = weights.check_torchvision("resnet18", "IMAGENET1K_V1", 1000)
    assert member is torchvision.models.ResNet18_Weights.IMAGENET1K_V1


@pytest.mark.parametrize(
    ("name", "requested", "classes", "expected"),
    [
        ("resnet18", "IMAGENET1K_V1", 10, "`IMAGENET1K_V1` has 1000 classes, the data set has 10"),
        ("vgg16", "IMAGENET1K_FEATURES", 1000, "has 0 classes"),
        ("resnet18", "IMAGENET1K_V3", 1000, "torchvision has no `IMAGENET1K_V3` for `resnet18`"),
        ("resnet18-small-stem", "IMAGENET1K_V1", 1000, "torchvision has no weights for `resnet18-small-stem`"),
        ("convnet3", "IMAGENET1K_V1", 1000, "torchvision has no weights for `convnet3`"),
        ("inception_v3", "IMAGENET1K_V1", 1000, "need images normalised differently"),
    ],
)
def test_weights_of_torchvision_that_do_not_suit(name: str, requested: str, classes: int, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        weights.check_torchvision(name, requested, classes)
    assert expected in caught.value.what
    assert caught.value.where == "teacher.weights"


def test_the_available_weights_are_listed() -> None:
    with pytest.raises(UserError) as caught:
        weights.check_torchvision("resnet50", "V1", 1000)
    assert caught.value.expected.startswith("IMAGENET1K_V1, IMAGENET1K_V2")
