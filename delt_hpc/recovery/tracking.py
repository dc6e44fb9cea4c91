"""The loss curves of batches, given to the configured tracker while the batches are recovered."""

from delt_hpc.context import Context
from delt_hpc.recovery.batch_folder import CURVE_COLUMNS, CURVE_POINTS
from delt_hpc.recovery.state import State
from delt_hpc.run.tracker import UnitTracker

_VALUES = CURVE_COLUMNS[1:]  # the first one, the iteration, is the step


class CurveTracker:
    """Gives the rows of each batch's curve to its tracker once, as many as curve.csv has."""

    def __init__(self, context: Context) -> None:
        self._trackers = context.trackers
        self._every = max(1, context.config.recover.iterations // CURVE_POINTS)
        self._open: dict[str, tuple[UnitTracker, int]] = {}  # with the number of rows that are logged

    def __enter__(self) -> "CurveTracker":
        return self

    def __exit__(self, *_: object) -> None:
        for tracker, _logged in self._open.values():
            tracker.close()

    def start(self, batch: str, state: State) -> None:
        """Log what comes after the batch's present state. Earlier rows were logged before its checkpoint."""
        tracker, _ = self._open.get(batch) or (self._trackers.start("recover", batch), 0)
        self._open[batch] = tracker, len(state.curve)

    def log(self, batch: str, state: State) -> None:
        tracker, logged = self._open[batch]
        for row in state.curve[logged:]:
            if int(row[0]) % self._every == 0:
                tracker.log(dict(zip(_VALUES, row[1:], strict=True)), int(row[0]))
        self._open[batch] = tracker, len(state.curve)

    def finish(self, batch: str, state: State) -> None:
        """Log the last rows of a finished batch, and close its tracker."""
        self.log(batch, state)
        tracker, _ = self._open.pop(batch)
        tracker.close()
