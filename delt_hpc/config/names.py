"""Types of the names in a configuration: each is checked where it is read."""

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from delt_hpc.config import methods, network_name


def _known_method(name: str) -> str:
    problem = methods.unknown(name)
    if problem:
        # The message is a template of pydantic, where braces have a meaning.
        raise PydanticCustomError("unknown_method", "{problem}", {"problem": problem})
    return name


def _network_name(name: str) -> str:
    if not network_name.is_network(name):
        raise PydanticCustomError("network_name", "expected " + network_name.EXPECTED)
    return name


def _tracker_name(name: str) -> str:
    if name not in ("none", "tensorboard") and not network_name.is_function_name(name):
        raise PydanticCustomError("tracker_name", "expected none, tensorboard, or package.module:function")
    return name


TrackerName = Annotated[str, AfterValidator(_tracker_name)]
NetworkName = Annotated[str, AfterValidator(_network_name)]
MethodName = Annotated[str, AfterValidator(_known_method)]
