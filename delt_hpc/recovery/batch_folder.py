"""The folder of a batch: its first images, its checkpoint while it is on its way, its result."""

import pandas as pd
import torch

from delt_hpc.context import Context, StageFolder
from delt_hpc.ranking import selection
from delt_hpc.recovery import images
from delt_hpc.recovery.batches import Batch
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.state import State
from delt_hpc.run.folder import write_csv

IMAGES, CURVE = "images.csv", "curve.csv"
CURVE_COLUMNS = ("iteration", "round", "active", "lr", "min_crop", "loss", "cross_entropy", "bn_loss")
CURVE_POINTS = 200  # kept of a batch's iterations
_CPU = torch.device("cpu")


class BatchFolder:
    """recover/<batch>/"""

    def __init__(self, context: Context, batch: Batch) -> None:
        self.batch, self._context = batch, context
        self.path = context.run.recover / batch.id
        # The stamp is that of recover/, which holds all batches.
        self._stage = StageFolder(context, "recover", self.path, stamped=False)

    def done(self) -> bool:
        """Whether the batch is finished; see `StageFolder.done`."""
        return self._stage.done()

    @property
    def started(self) -> bool:
        """Is there a checkpoint to go on from?"""
        return self._stage.checkpoint.exists()

    def load(self) -> State:
        """Where the batch is, on the CPU: its checkpoint, or its first images."""
        self._stage.start()
        if self.started:
            return State.load(self._stage.checkpoint, _CPU)
        return State.start(self._initial())

    def save(self, state: State) -> None:
        state.save(self._stage.checkpoint)

    def finish(self, state: State, waited: float, compiled: float = 0.0) -> None:
        """Write images, tables and times; then the batch is done.

        Args:
            waited: seconds the computation waited for the batch's first images.
            compiled: seconds that compilation took within its time.
        """
        config, spec = self._context.config, self._context.dataset.spec
        images.write(self.batch, state.images, spec, config.recover.image_format, self.path)
        self._write_tables(state)
        schedule = Schedule.of(config.recover)
        for now, seconds in enumerate(state.round_seconds):
            active = self.batch.active(now)
            self._stage.record(
                self.batch.id, active, active * schedule.round_length, seconds=seconds, round=now,
                data_wait_s=waited if now == 0 else 0.0, compile_s=compiled if now == 0 else 0.0,
            )  # fmt: skip
        self._stage.finish({"seconds": sum(state.round_seconds), "data_wait_s": waited})

    def _initial(self) -> torch.Tensor:
        config, spec = self._context.config, self._context.dataset.spec
        if config.recover.init == "noise":
            return images.noise(self.batch, spec, config.seed, "noise")
        selected = self._context.run.selected
        return images.selected(self.batch, selected, selection.read(selected), spec)

    def _sources(self) -> list[str]:
        """The real image that each image comes from."""
        if self._context.config.recover.init == "noise":
            return [""] * len(self.batch.entries)
        return images.sources(self.batch, selection.read(self._context.run.selected))

    def _write_tables(self, state: State) -> None:
        recover = self._context.config.recover
        schedule, bn_loss = Schedule.of(recover), state.curve[-1][-1]
        table = pd.DataFrame(
            {
                "class_index": entry.class_index,
                "number": entry.number,
                "file": images.file_of(entry.class_index, entry.number, recover.image_format),
                "source": source,
                "entry_round": entry.round,
                "iterations": schedule.iterations - entry.round * schedule.round_length,
                "cross_entropy": cross_entropy,
                "bn_loss": bn_loss,
            }
            for entry, source, cross_entropy in zip(
                self.batch.entries, self._sources(), state.cross_entropy.tolist(), strict=True
            )
        )
        table = table.sort_values(["class_index", "number"])
        write_csv(self.path / IMAGES, lambda file: table.to_csv(file, index=False))
        curve = pd.DataFrame(state.curve, columns=list(CURVE_COLUMNS))
        kept = curve[(curve.index % max(1, len(curve) // CURVE_POINTS) == 0) | (curve.index == len(curve) - 1)]
        write_csv(self.path / CURVE, lambda file: kept.to_csv(file, index=False))
