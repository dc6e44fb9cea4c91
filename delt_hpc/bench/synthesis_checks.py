"""Is what is timed right? Loss and image gradient of a first iteration against the published formula in float64."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from delt_hpc.bench.synthesis_cases import Case
from delt_hpc.bench.synthesis_runs import Outcome, Published, Run
from delt_hpc.config.schema import RecoverPrecision
from delt_hpc.recovery.precision import NumericFormat

CHECKED = 2  # rounds, the first ones, whose batches are smallest


class Errors(NamedTuple):
    """Relative: of the loss, and of the gradient in the Euclidean norm."""

    loss: float
    gradient: float


# A few times what the published formula itself is off by in that type; wrong images are off by more than 1.
ALLOWED: dict[RecoverPrecision, Errors] = {
    "float32": Errors(1e-5, 1e-2),
    "tf32": Errors(5e-3, 0.1),
    "bfloat16": Errors(2e-2, 0.4),
    "float16": Errors(5e-3, 0.1),
}


class InexactError(Exception):
    """A variant does not compute what it should."""


def expected(case: Case, device: torch.device) -> dict[int, Outcome]:
    """What the first batches' first iterations give in float64, by round."""
    exact = Published(case, NumericFormat(torch.float64), device, dtype=torch.float64)
    found = {}
    for round_index in range(min(CHECKED, case.recipe.rounds)):
        exact.enter((round_index,))
        exact.iterate(1)
        found[round_index] = exact.outcome(round_index)
    return found


def check(run: Run, rounds: tuple[int, ...], due: dict[int, Outcome], precision: RecoverPrecision) -> Errors:
    """The largest errors of the rounds that are known, after the first iteration.

    Raises:
        InexactError: one is not allowed.
    """
    allowed, all_found = ALLOWED[precision], []
    for round_index in rounds:
        if round_index not in due:
            continue
        found = errors(run.outcome(round_index), due[round_index])
        # Negated, so that what is not a number does not pass.
        if not (found.loss <= allowed.loss and found.gradient <= allowed.gradient):
            raise InexactError(
                f"wrong in round {round_index + 1}: loss off by {found.loss:.1e} ({allowed.loss:.0e} allowed), gradient"
                f" by {found.gradient:.1e} ({allowed.gradient:.0e} allowed)"
            )
        all_found.append(found)
    return worst(all_found)


def worst(found: Iterable[Errors]) -> Errors:
    """The largest of each; zero where there are none."""
    return Errors(*(max(column) for column in zip(Errors(0.0, 0.0), *found, strict=True)))


def errors(found: Outcome, due: Outcome) -> Errors:
    difference = (found.gradient.double() - due.gradient.double()).norm() / due.gradient.double().norm()
    return Errors(abs(found.loss - due.loss) / abs(due.loss), difference.item())
