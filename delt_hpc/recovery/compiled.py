"""torch.compile as one graph, with a fallback to the uncompiled function."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from delt_hpc.errors import UserError
from delt_hpc.training.compiled import with_fallback

P = ParamSpec("P")
R = TypeVar("R")


def compile_with_fallback(
    function: Callable[P, R], *, deterministic: bool, sizes_change: bool = False
) -> Callable[P, R]:
    """The function, compiled as one graph at its first call with a shape, together with its backward pass.

    If either fails to compile, a warning names the reason, and the function runs uncompiled from then on.

    Args:
        deterministic: compile each shape by itself, because code for dynamic shapes depends on which shapes came
            before. A failure is an error then, because compiled and uncompiled code differ in the last bits.
        sizes_change: images of several sizes follow each other; compile each shape by itself, except for dimensions
            that are marked as dynamic.
    """
    # Graphs that contain an autograd.Function (sums over segments) are not cached otherwise.
    torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    torch._dynamo.config.recompile_limit = 64  # shapes of all engines in this process
    # Recompute activations in the backward pass from the inputs of BatchNorm, which are kept in any case, instead of
    # storing masks and float32 activations as well. The step is bound by memory traffic.
    torch._functorch.config.ban_recompute_used_far_apart = False
    # Otherwise the backward pass is compiled when it first runs, where a failure would not be seen here.
    torch._functorch.config.force_non_lazy_backward_lowering = True
    compiled = torch.compile(function, fullgraph=True, dynamic=False if deterministic or sizes_change else None)
    return with_fallback(function, compiled, _refuse if deterministic else None)


def _refuse(reason: str) -> UserError:
    return UserError(
        f"torch.compile failed: {reason}",
        where="recover.compile, with recover.deterministic: true",
        remedy="set recover.compile: false for all tasks of the run",
    )
