"""Names of networks: NAME, torchvision/NAME, timm/NAME, or package.module:function."""

import re

TORCHVISION, TIMM = "torchvision/", "timm/"
EXPECTED = "a name that `delt-hpc models` lists, torchvision/NAME, timm/NAME, or package.module:function"
_NAME = re.compile(r"(torchvision/|timm/)?[A-Za-z0-9][A-Za-z0-9._-]*")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_network(name: str) -> bool:
    """Whether `name` is written as the name of a network. There need not be such a network."""
    return bool(_NAME.fullmatch(name) or _FUNCTION.fullmatch(name))


def is_function(name: str) -> bool:
    """Whether `name` is a function's, package.module:function."""
    return ":" in name


def is_function_name(text: str) -> bool:
    """Whether `text` is written as package.module:function."""
    return bool(_FUNCTION.fullmatch(text))


def in_file_names(name: str) -> str:
    """The name with `-` in the place of `/` and `:`, for files and folders: timm/resnet18 -> timm-resnet18."""
    return re.sub("[/:]", "-", name)
