"""A case of the kernels' benchmark: an operator on one shape, and the ways to compute it.

A case's inputs are drawn once; its ways compute the same results from them. Bytes are modelled: each tensor that a pass
cannot do without is read or written once, signs of a residual's ReLU as bits.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from delt_kernels.dispatch import Backend

# Images of each segment where eight batches of 100 are packed, each a round behind the next (50 images a class).
ROUNDS = (14, 28, 40, 52, 64, 76, 88, 100)

Tensors = tuple[Tensor, ...]
Run = Callable[..., Tensors]


class Batch(NamedTuple):
    """Packed images: the segments' borders, and the type of activations."""

    split: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, images: int, dtype: torch.dtype, device: torch.device) -> "Batch":
        """Eight segments in the rounds' proportions; few images leave some of them empty."""
        borders = accumulate(ROUNDS, initial=0)
        return cls(tuple(round(images * border / sum(ROUNDS)) for border in borders), dtype, device)

    @property
    def images(self) -> int:
        return self.split[-1]

    @property
    def offsets(self) -> Tensor:
        return torch.tensor(self.split, dtype=torch.int32, device=self.device)

    def counts(self, pixels: int) -> Tensor:
        """Pixels of each segment, float64 [G, 1]."""
        return (self.offsets.diff() * pixels).double()[:, None]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device)

    def activations(self, *shape: int) -> Tensor:
        return self.normal(*shape).to(self.dtype, memory_format=torch.channels_last)


@dataclass(frozen=True)
class Way:
    """A way to compute an operator.

    Args:
        run: inputs -> outputs; this is what is measured.
        finish: outputs -> results, the same for all ways of a case, where the outputs are not yet these; not measured.
        backward: inputs, then a gradient of each output -> gradients of the leaves; autograd if None.
    """

    run: Run
    finish: Run | None = None
    backward: Run | None = None

    def compiled(self) -> "Way":
        torch.compiler.reset()  # else a function that was compiled for other shapes counts as one of this one's tries
        run, backward = (f and torch.compile(f, fullgraph=True, dynamic=False) for f in (self.run, self.backward))
        assert run is not None
        return replace(self, run=run, backward=backward)


@dataclass(frozen=True)
class Case:
    """An operator on one shape.

    Args:
        count: how often it runs in an iteration of its network.
        inputs: those with a gradient first.
        leaves: how many inputs have a gradient.
        cotangents: gradients of the results.
        bytes: modelled, of the forward and of the backward pass.
        terms: how many numbers are added up in a result, at most.
    """

    network: str
    operator: str
    shape: str
    count: int
    inputs: Tensors
    leaves: int
    cotangents: Tensors
    published: Way
    ours: Callable[[Backend], Way]
    bytes: tuple[int, int]
    terms: int = 1

    def way(self, form: str) -> Way:
        """The published formula, eager or compiled (published); ours, compiled (torch) or as kernels (triton)."""
        if form in ("eager", "published"):
            return self.published if form == "eager" else self.published.compiled()
        return self.ours("triton") if form == "triton" else self.ours("torch").compiled()
