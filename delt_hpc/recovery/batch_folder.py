"""The folder of a batch: its checkpoint while it is unfinished, then its images and tables."""

import pandas as pd
import torch

from delt_hpc.context import Context, StageFolder
from delt_hpc.ranking import selection
from delt_hpc.recovery import blocks, images
from delt_hpc.recovery.batches import Batch
from delt_hpc.recovery.schedule import Schedule
from delt_hpc.recovery.state import State
from delt_hpc.run import checksums
from delt_hpc.run.checkpoint import DamagedCheckpointError
from delt_hpc.run.folder import write_csv

IMAGES, CURVE = "images.csv", "curve.csv"
CURVE_COLUMNS = ("iteration", "round", "active", "lr", "min_crop", "loss", "cross_entropy", "bn_loss")
CURVE_POINTS = 200  # rows of curve.csv, about; the other iterations are left out
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
        """Whether there is a checkpoint to resume from."""
        return self._stage.checkpoint.exists()

    def load(self) -> State:
        """The state of the batch, on the CPU: its checkpoint, or its initial images.

        A damaged checkpoint is set aside, and the batch starts again.
        """
        self._stage.start()
        if self.started:
            try:
                return State.load(self._stage.checkpoint, _CPU)
            except DamagedCheckpointError as error:
                self._stage.set_checkpoint_aside(error)
        return blocks.start(self._initial(), self._context.config.recover)

    def save(self, state: State) -> None:
        state.save(self._stage.checkpoint)

    def finish(self, state: State, wait_seconds: float, segments: int, compile_seconds: float = 0.0) -> None:
        """Write images, tables and times, and mark the batch as done.

        Args:
            wait_seconds: how long the computation waited for the initial images.
            segments: the largest number of batches in a pass.
            compile_seconds: how much of the time was compilation.
        """
        config, spec = self._context.config, self._context.dataset.spec
        images.write_images(self.batch, state.images, spec, config.recover.image_format, self.path)
        self._write_tables(state)
        schedule = Schedule.of(config.recover)
        for round_index, seconds in enumerate(state.round_seconds):
            active = self.batch.active(round_index)
            self._stage.record(
                self.batch.id, active, active * schedule.round_length, seconds=seconds,
                round=round_index if schedule.iterations else None,
                data_wait_s=wait_seconds if round_index == 0 else 0.0,
                compile_s=compile_seconds if round_index == 0 else 0.0,
            )  # fmt: skip
        facts = {"seconds": sum(state.round_seconds), "data_wait_s": wait_seconds, "segments": segments}
        self._stage.finish(facts)

    def _initial(self) -> torch.Tensor:
        config, spec = self._context.config, self._context.dataset.spec
        if config.recover.init == "noise":
            return images.noise(self.batch, spec, config.seed, "noise")
        uncropped = selection.spec_of(config, spec)
        return images.load_selected(self.batch, self._context.run.selected, self._selected(), uncropped)

    def _sources(self) -> list[str]:
        """The path of the real image that each image started from; empty strings for noise."""
        if self._context.config.recover.init == "noise":
            return [""] * len(self.batch.entries)
        return images.source_paths(self.batch, self._selected())

    def _selected(self) -> pd.DataFrame:
        """The table of the selected images."""
        checksums.require(self._context.run.selected, "select", [selection.TABLE])
        return selection.read(self._context.run.selected)

    def _write_tables(self, state: State) -> None:
        recover = self._context.config.recover
        schedule, bn_loss = Schedule.of(recover), state.curve[-1][-1]
        table = pd.DataFrame(
            {
                "class_index": entry.class_index,
                "number": entry.number,
                "file": images.file_name(entry.class_index, entry.number, recover.image_format),
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
