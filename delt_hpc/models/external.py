"""Networks from outside this package: timm's, and those that a user's own function returns."""

import difflib
import importlib

import torch
from torch import nn

from delt_hpc.config.network_name import TIMM, is_function
from delt_hpc.errors import UserError


def is_external(name: str) -> bool:
    """Whether `name` is timm/NAME or package.module:function."""
    return name.startswith(TIMM) or is_function(name)


def build(name: str, classes: int) -> nn.Module:
    """The randomly initialised network.

    Raises:
        UserError: timm is not installed or has no such network; or the function is not found, fails, or returns
            something other than an nn.Module.
    """
    return _from_function(name, classes) if is_function(name) else _from_timm(name.removeprefix(TIMM), classes)


def check_output(network: nn.Module, name: str, classes: int, size: int, where: str) -> None:
    """Check the shape of the output for two images of size x size, on the CPU.

    Raises:
        UserError: the network does not accept such images, or its output is not [2, classes].
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            output = network(torch.zeros(2, 3, size, size))
    except Exception as error:  # the code of others may raise anything
        raise UserError(f"`{name}` does not accept images of {size} x {size}: {error}", where=where) from None
    shape = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if shape != [2, classes]:
        raise UserError(
            f"`{name}` returns {shape} for two images", where=where, expected=f"a tensor of logits, [2, {classes}]"
        )


def _from_timm(name: str, classes: int) -> nn.Module:
    try:
        import timm  # noqa: PLC0415  # optional
    except ImportError:
        raise UserError(f"`{TIMM}{name}` requires timm", remedy="pip install 'delt-hpc[timm]'") from None
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise UserError(
            f"timm has no network `{name}`",
            expected=f"e.g. {', '.join(close or ['resnet18'])}; `timm.list_models()` lists all",
        )
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    except Exception as error:  # e.g. an unknown tag of pretrained weights
        raise UserError(f"timm cannot create `{name}`: {error}") from None
    return network


def _from_function(name: str, classes: int) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise UserError(
            f"the module `{module_name}` cannot be imported: {type(error).__name__}: {error}",
            remedy="install the package, or add its folder to PYTHONPATH",
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(
            f"`{module_name}` has no function `{function_name}`",
            expected=f"def {function_name}(num_classes: int) -> torch.nn.Module",
        )
    try:
        network = function(num_classes=classes)
    except Exception as error:
        raise UserError(
            f"`{name}(num_classes={classes})` failed: {type(error).__name__}: {error}",
            expected=f"def {function_name}(num_classes: int) -> torch.nn.Module",
        ) from None
    if not isinstance(network, nn.Module):
        raise UserError(f"`{name}` returned a {type(network).__name__}", expected="a torch.nn.Module")
    return network
