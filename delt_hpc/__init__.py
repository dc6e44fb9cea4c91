"""delt-hpc: data set distillation by DELT (arXiv 2411.19946) on GPU clusters."""

from typing import TYPE_CHECKING, Any

from delt_hpc.version import VERSION as __version__

if TYPE_CHECKING:
    from delt_hpc.api import compare, distil, load_distilled, status

__all__ = ["__version__", "compare", "distil", "load_distilled", "status"]


def __getattr__(name: str) -> Any:
    """Import the functions of `delt_hpc.api` when they are first used: importing the package stays quick."""
    if name not in __all__:
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
    from delt_hpc import api  # noqa: PLC0415

    return getattr(api, name)
