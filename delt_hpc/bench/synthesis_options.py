"""What the synthesis benchmark measures."""

from dataclasses import dataclass, replace
from typing import cast

import torch

from delt_hpc.bench.synthesis_cases import NETWORKS, Recipe
from delt_hpc.bench.synthesis_variants import PRECISIONS, VARIANTS
from delt_hpc.config.schema import RecoverPrecision
from delt_hpc.errors import UserError


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        recipe: whose costs are told.
        repeats: blocks of iterations, of which the median counts.
    """

    networks: tuple[str, ...]
    variants: tuple[str, ...]
    precisions: tuple[RecoverPrecision, ...]
    recipe: Recipe
    repeats: int

    @staticmethod
    def usual(device: torch.device) -> "Options":
        """On a GPU the published recipe and all networks; on a CPU what ends in about a minute."""
        if device.type == "cuda":
            variants = tuple(name for name in VARIANTS if not name.startswith("torch"))
            return Options(tuple(NETWORKS), variants, PRECISIONS, Recipe(), 5)
        variants = ("reference", "torch", "torch-packed", "compiled-packed", "triton-packed")
        return Options(("convnet3",), variants, ("float32",), Recipe(ipc=8, batch_size=8, rounds=4), 3)

    def changed(
        self,
        networks: str | None = None,
        variants: str | None = None,
        precisions: str | None = None,
        ipc: int | None = None,
        batch_size: int | None = None,
        iterations: int | None = None,
        rounds: int | None = None,
        repeats: int | None = None,
    ) -> "Options":
        """With what is given; names are separated by commas.

        Raises:
            UserError: an unknown name, or a number that makes no sense.
        """
        recipe = {"ipc": ipc, "batch_size": batch_size, "iterations": iterations, "rounds": rounds}
        found = replace(self, recipe=replace(self.recipe, **{k: v for k, v in recipe.items() if v is not None}))
        if networks is not None:
            found = replace(found, networks=_names("--networks", networks, tuple(NETWORKS)))
        if variants is not None:
            found = replace(found, variants=_names("--variants", variants, tuple(VARIANTS)))
        if precisions is not None:
            known = cast("tuple[RecoverPrecision, ...]", _names("--precisions", precisions, PRECISIONS))
            found = replace(found, precisions=known)
        if repeats is not None:
            if repeats < 1:
                raise UserError(f"{repeats} is too few", where="--repeats", expected="1 at least")
            found = replace(found, repeats=repeats)
        if not any(precision in VARIANTS[name].precisions for precision in found.precisions for name in found.variants):
            raise UserError(
                f"{', '.join(found.variants)} is not measured in {', '.join(found.precisions)}",
                where="--variants, --precisions",
                expected=f"e.g. {', '.join(VARIANTS[found.variants[0]].precisions)}",
            )
        return found


def _names(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """In the order in which they are known."""
    given = [name.strip() for name in text.split(",")]
    for name in given:
        if name not in known:
            raise UserError(f"there is no `{name}`", where=f"{option} {text}", expected=", ".join(known))
    return tuple(name for name in known if name in given)
