"""Types of options that name something: checked when the configuration is loaded."""

from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, StringConstraints
from pydantic_core import PydanticCustomError

from delt_hpc.config import methods, network_name, protocols


def _known(unknown: Callable[[str], str]) -> AfterValidator:
    """Refuses names for which `unknown` gives a problem."""

    def check(name: str) -> str:
        problem = unknown(name)
        if problem:
            # The message is a template of pydantic, where braces have a meaning.
            raise PydanticCustomError("unknown_name", "{problem}", {"problem": problem})
        return name

    return AfterValidator(check)


def _unknown_network(name: str) -> str:
    return "" if network_name.is_network(name) else f"expected {network_name.EXPECTED}"


def _unknown_tracker(name: str) -> str:
    known = name in ("none", "tensorboard") or network_name.is_function_name(name)
    return "" if known else "expected none, tensorboard, or package.module:function"


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
NetworkName = Annotated[str, _known(_unknown_network)]
TrackerName = Annotated[str, _known(_unknown_tracker)]
MethodName = Annotated[str, _known(methods.unknown)]
ProtocolName = Annotated[str, _known(protocols.unknown)]
