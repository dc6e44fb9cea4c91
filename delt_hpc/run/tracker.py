"""Trackers: the values of trainings and of recovery, shown elsewhere while the work goes on (docs/tracking.md).

No result depends on a tracker. One that fails is switched off with a warning, and the work goes on.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from delt_hpc.config.schema import Stage
from delt_hpc.errors import UserError

NONE, TENSORBOARD = "none", "tensorboard"
SIGNATURE = "(*, folder: Path, stage: str, unit: str, first_step: int, config: dict) -> Tracker"
_FLUSH_SECONDS = 10


class Tracker(Protocol):
    """Where the values of one unit of work (a training, a batch) go."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the values of an epoch or iteration, which is counted from 0. Steps ascend."""

    def close(self) -> None:
        """No more values will come: the unit is finished, or was interrupted."""


Factory = Callable[..., Tracker]


class TensorBoard:
    """Event files in the unit's folder."""

    def __init__(self, *, folder: Path, first_step: int, **_: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # optional

        # Of an interrupted process there may be events beyond its last checkpoint: `purge_step` takes them back.
        self._writer = SummaryWriter(str(folder), purge_step=first_step, flush_secs=_FLUSH_SECONDS)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def check(name: str) -> None:
    """Check that `machine.tracker` can be used.

    Raises:
        UserError: TensorBoard is not installed, or the function is not found.
    """
    if name == TENSORBOARD:
        try:
            importlib.import_module("torch.utils.tensorboard")
        except ImportError:
            raise UserError(
                "TensorBoard is not installed",
                where=f"machine.tracker: {name}",
                remedy="pip install 'delt-hpc[tensorboard]'",
            ) from None
    elif name != NONE:
        _function(name)


class Trackers:
    """The trackers of a process: one for each unit of work."""

    def __init__(self, name: str, folder: Path, config: dict[str, Any], say: Callable[[str], None]) -> None:
        """
        Args:
            name: `machine.tracker`.
            folder: those of the units are made in it.
            config: the resolved configuration, as plain data.
            say: prints a warning.
        """
        self._name, self._folder, self._config, self._say = name, folder, config, say
        self._failed = False

    def start(self, stage: Stage, unit: str) -> "UnitTracker":
        """The tracker of a unit; to be closed."""
        return UnitTracker(self, stage, unit)

    @property
    def off(self) -> bool:
        return self._name == NONE or self._failed

    def create(self, stage: Stage, unit: str, first_step: int) -> Tracker:
        make = TensorBoard if self._name == TENSORBOARD else _function(self._name)
        folder = self._folder / stage / unit
        return make(folder=folder, stage=stage, unit=unit, first_step=first_step, config=self._config)

    def fail(self, error: Exception) -> None:
        """Switch off all trackers of this process; says so once."""
        if not self._failed:
            self._failed = True
            self._say(f"warning: the tracker `{self._name}` failed and is switched off: {error!r}")


class UnitTracker:
    """Passes on the values of a unit; the tracker is made with the first of them."""

    def __init__(self, trackers: Trackers, stage: Stage, unit: str) -> None:
        self._trackers, self._stage, self._unit = trackers, stage, unit
        self._tracker: Tracker | None = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self._trackers.off:
            return
        try:
            if self._tracker is None:
                self._tracker = self._trackers.create(self._stage, self._unit, step)
            self._tracker.log(values, step)
        except Exception as error:  # a full disk, or whatever the code of others raises
            self._trackers.fail(error)

    def close(self) -> None:
        tracker, self._tracker = self._tracker, None
        if tracker is None:
            return
        try:
            tracker.close()
        except Exception as error:
            self._trackers.fail(error)


def _function(name: str) -> Factory:
    module_name, _, function_name = name.partition(":")
    try:
        function: Factory | None = getattr(importlib.import_module(module_name), function_name, None)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise UserError(
            f"the module `{module_name}` cannot be imported: {type(error).__name__}: {error}",
            where=f"machine.tracker: {name}",
            remedy="install the package, or add its folder to PYTHONPATH",
        ) from None
    if not callable(function):
        raise UserError(
            f"`{module_name}` has no function `{function_name}`",
            where=f"machine.tracker: {name}",
            expected=f"def {function_name}{SIGNATURE}",
        )
    return function
