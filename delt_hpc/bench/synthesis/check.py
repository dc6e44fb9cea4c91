"""Loss and image gradient of a first iteration, compared with the published formula in float64."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from delt_hpc.bench.synthesis.cases import Case
from delt_hpc.bench.synthesis.engines import Held, HeldReference, Outcome
from delt_hpc.config.schema import RecoverPrecision

CHECKED_ROUNDS = 2  # the first ones, whose batches are smallest


class Errors(NamedTuple):
    """Relative errors: of the loss, and of the gradient in the Euclidean norm."""

    loss: float
    gradient: float


# A few times the published formula's own errors in that type; those of wrong images exceed 1.
ALLOWED: dict[RecoverPrecision, Errors] = {
    "float32": Errors(1e-5, 1e-2),
    "tf32": Errors(5e-3, 0.1),
    "bfloat16": Errors(2e-2, 0.4),
    "float16": Errors(5e-3, 0.1),
}


class InexactError(Exception):
    """An engine's result is wrong."""


def expected(case: Case, device: torch.device) -> dict[int, Outcome]:
    """First iterations in float64, by round."""
    exact = HeldReference(case, device, dtype=torch.float64)
    outcomes = {}
    for round_index in range(min(CHECKED_ROUNDS, case.recipe.rounds)):
        exact.enter((round_index,))
        exact.iterate(1)
        outcomes[round_index] = exact.outcome(round_index)
    return outcomes


def check(
    engine: Held, rounds: tuple[int, ...], exact: dict[int, Outcome], precision: RecoverPrecision
) -> list[Errors]:
    """Errors of the rounds whose outcome is known, after the first iteration.

    Raises:
        InexactError: one is larger than allowed.
    """
    allowed, found = ALLOWED[precision], []
    for round_index in [r for r in rounds if r in exact]:
        errors = errors_of(engine.outcome(round_index), exact[round_index])
        # Negated, so that NaN is an error too.
        if not (errors.loss <= allowed.loss and errors.gradient <= allowed.gradient):
            raise InexactError(
                f"wrong in round {round_index + 1}: relative error of the loss {errors.loss:.1e} ({allowed.loss:.0e}"
                f" allowed), of the gradient {errors.gradient:.1e} ({allowed.gradient:.0e} allowed)"
            )
        found.append(errors)
    return found


def worst(errors: Iterable[Errors]) -> Errors:
    """The largest of each."""
    return Errors(*(max(column) for column in zip(*errors, strict=True)))


def errors_of(outcome: Outcome, exact: Outcome) -> Errors:
    difference = (outcome.gradient.double() - exact.gradient.double()).norm() / exact.gradient.double().norm()
    return Errors(abs(outcome.loss - exact.loss) / abs(exact.loss), difference.item())
