"""Weights of networks: state dicts read from files, torchvision's by name, and a clear word about what does not fit."""

import pickle
import re
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from delt_hpc.errors import UserError, some
from delt_hpc.models.registry import AUXILIARY, SMALL_STEM
from delt_hpc.run.folder import writing

_WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "network")
_PREFIXES = ("module.", "_orig_mod.")
_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
State = dict[str, Tensor]


def read(path: Path) -> State:
    """A state dict from .safetensors, or from torch's format without executing anything in it.

    The usual wrappings are taken off: {"model": ...}, {"state_dict": ...}, `module.` and `_orig_mod.` before each key.

    Raises:
        UserError: the file cannot be read, or holds no state dict.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _torch_load(path)
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot be read as weights: {error}", where=str(path)) from None
    while isinstance(content, dict) and not _is_state(content):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
        if inner is None:
            raise UserError(
                f"holds no state dict; its keys are {some([repr(key) for key in content], 8)}",
                where=str(path),
                expected=f"tensors by name, bare or below one of {', '.join(_WRAPPERS)}",
            )
        content = inner
    if not isinstance(content, dict):
        raise UserError(f"holds a {type(content).__name__}", where=str(path), expected="a state dict")
    state: State = dict(content)
    for prefix in _PREFIXES * 2:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def fit(network: nn.Module, state: State, where: str) -> None:
    """Load `state` into `network`, every key of it and no other.

    Raises:
        UserError: naming each key that is missing, unknown or of another shape.
    """
    wanted = network.state_dict()
    # Older files carry no step counter of BatchNorm, which inference does not use.
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
    # Into the network's own dictionary, for it carries the version that MNASNet asks for.
    wanted.update(state)
    network.load_state_dict(wanted)


def check_torchvision(name: str, weights: str, classes: int) -> Any:
    """torchvision's weights of that name, if they suit the network and the number of classes."""
    if name.endswith(SMALL_STEM) or name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"torchvision has no weights for `{name}`", where="teacher.weights")
    if name in AUXILIARY:
        raise UserError(
            f"torchvision's weights for `{name}` want images normalised in another way than every other network",
            where="teacher.weights",
            remedy="take another network, or train this one (teacher.source: train)",
        )
    known = torchvision.models.get_model_weights(name)
    named = [each for each in known.__members__ if each != "DEFAULT"]  # which may change with torchvision
    if weights not in named:
        raise UserError(
            f"torchvision has no `{weights}` for `{name}`", where="teacher.weights", expected=", ".join(named)
        )
    member = known[weights]
    trained = len(member.meta["categories"] or ())  # None: features without a classifier
    if trained != classes:
        raise UserError(
            f"`{weights}` knows {trained} classes, the data set has {classes}",
            where="teacher.weights",
            remedy="train the teacher (teacher.source: train) or give a checkpoint made for these classes",
        )
    return member


def download(member: Any) -> State:
    """The state dict of torchvision's weights, from torch's cache or the network."""
    try:
        state: State = member.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, HTTPException, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{member} cannot be fetched: {error}",
            where="teacher.weights",
            remedy="fetch it on a machine with a network, copy the file here and name it in teacher.checkpoint"
            " (teacher.source: checkpoint)",
        ) from None
    # DenseNet's files are older than the names of its layers.
    return {_DENSENET.sub(r"\1\2.", key): tensor for key, tensor in state.items()}


def write(path: Path, state: State) -> None:
    """A safetensors file, complete or not at all."""
    with writing(path) as file:
        file.write(save({key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}))


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle fails in every way there is
        foreign = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if foreign:
            raise UserError(
                f"holds more than weights ({foreign[1]}), and nothing in it is executed",
                where=str(path),
                remedy="save the state dict alone: torch.save(model.state_dict(), FILE)",
            ) from None
        raise UserError(
            "is damaged, or no file of weights",
            where=str(path),
            expected="what torch.save(model.state_dict(), FILE) writes, or .safetensors",
        ) from None


def _is_state(content: dict[Any, Any]) -> bool:
    return bool(content) and all(isinstance(key, str) and isinstance(v, Tensor) for key, v in content.items())
