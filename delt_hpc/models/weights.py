"""Weights of networks: state dicts from files and from torchvision, with errors that name what does not fit."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from delt_hpc.config.network_name import TORCHVISION
from delt_hpc.errors import UserError, some
from delt_hpc.models.networks import AUXILIARY, SMALL_STEM
from delt_hpc.models.registry import torchvision_names
from delt_hpc.run.folder import writing

_WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "network")
_PREFIXES = ("module.", "_orig_mod.")
State = dict[str, Tensor]


def read(path: Path) -> State:
    """Read a state dict from .safetensors, or from torch's format without executing code in it.

    The usual wrappers are removed: {"model": ...}, {"state_dict": ...}, and the prefixes `module.` and `_orig_mod.`.

    Raises:
        UserError: the file cannot be read, or contains no state dict.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except FileNotFoundError:
        raise UserError("does not exist", where=str(path)) from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot be read as weights: {error}", where=str(path)) from None
    while isinstance(content, dict) and not _is_state(content):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            raise UserError(
                f"contains no state dict; its keys are {some([repr(key) for key in content], 8)}",
                where=str(path),
                expected=f"tensors by name, at the top level or under one of {', '.join(_WRAPPERS)}",
            )
        content = inner
    if not isinstance(content, dict):
        raise UserError(f"contains a {type(content).__name__}", where=str(path), expected="a state dict")
    state: State = dict(content)
    for prefix in _PREFIXES * 2:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def fit(network: nn.Module, state: State, where: str) -> None:
    """Load `state` into `network`; their keys must be the same.

    Raises:
        UserError: naming the keys that are missing, unknown or of another shape, or whose values are not numbers that a
            network can have.
    """
    wanted = network.state_dict()
    # Older files lack BatchNorm's step counter, which inference does not use.
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in wanted]
    shapes = [
        f"{key} is {list(state[key].shape)}, expected {list(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    problems = [
        f"{title}: {some(items, 5)}"
        for title, items in (("missing", missing), ("not in the network", unknown), ("other shape", shapes))
        if items
    ]
    if problems:
        raise UserError(
            "the weights do not fit the network:\n    " + "\n    ".join(problems),
            where=where,
            remedy="check teacher.model (small images want a -small-stem network) and the number of classes",
        )
    _check_values({key: state[key] for key in wanted if key in state and wanted[key].is_floating_point()}, where)
    # The network's own dictionary carries the version metadata that MNASNet needs.
    wanted.update(state)
    network.load_state_dict(wanted)


def _check_values(state: State, where: str) -> None:
    faults = []
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            faults.append(
                f"{key} contains {str(tensor.dtype).removeprefix('torch.')} instead of floating-point numbers"
            )
        elif not tensor.isfinite().all():
            faults.append(f"{key} contains NaN or infinite values")
        elif key.endswith("running_var") and (tensor < 0).any():
            faults.append(f"{key} contains negative variances")
    if faults:
        raise UserError(
            f"the weights are damaged or of another kind:\n    {some(faults, 5)}",
            where=where,
            expected="finite floating-point weights (not quantised), and running variances of at least 0",
        )


def check_torchvision(name: str, weights: str, classes: int) -> Any:
    """torchvision's weights of that name.

    Raises:
        UserError: there are no such weights, or they do not suit the network, its input or the number of classes.
    """
    name = name.removeprefix(TORCHVISION)
    if name.endswith(SMALL_STEM) or name not in torchvision_names():
        raise UserError(f"torchvision has no weights for `{name}`", where="teacher.weights")
    if name in AUXILIARY:
        raise UserError(
            f"torchvision's weights for `{name}` need images normalised differently from all other networks",
            where="teacher.weights",
            remedy="choose another network, or train this one (teacher.source: train)",
        )
    known = torchvision.models.get_model_weights(name)
    available = [member for member in known.__members__ if member != "DEFAULT"]  # may change with torchvision
    if weights not in available:
        raise UserError(
            f"torchvision has no `{weights}` for `{name}`", where="teacher.weights", expected=", ".join(available)
        )
    member = known[weights]
    trained = len(member.meta["categories"] or ())  # None: features without a classifier
    if trained != classes:
        raise UserError(
            f"`{weights}` has {trained} classes, the data set has {classes}",
            where="teacher.weights",
            remedy="train the teacher (teacher.source: train) or give a checkpoint made for these classes",
        )
    return member


def write(path: Path, state: State) -> None:
    """Write a safetensors file, atomically."""
    with writing(path) as file:
        file.write(save({key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}))


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        foreign = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if foreign:
            raise UserError(
                f"contains more than weights ({foreign[1]}), which is not loaded because it could execute code",
                where=str(path),
                remedy="save the state dict alone: torch.save(model.state_dict(), FILE)",
            ) from None
        raise UserError(
            "is damaged, or not a file of weights",
            where=str(path),
            expected="a file written by torch.save(model.state_dict(), FILE), or .safetensors",
        ) from None


def _is_state(content: dict[Any, Any]) -> bool:
    return bool(content) and all(isinstance(key, str) and isinstance(v, Tensor) for key, v in content.items())
