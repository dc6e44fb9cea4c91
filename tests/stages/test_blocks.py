"""Runs with blocks that merge images with their start: restarts, reports, warm-up."""

import copy
from typing import Any

import pytest
from helpers.toy import Start, copy_run, images_of

from delt_hpc.context import Context
from delt_hpc.distilled import manifest
from delt_hpc.recovery import engine as packed
from delt_hpc.recovery import reference
from delt_hpc.recovery.batch_folder import BatchFolder
from delt_hpc.recovery.batches import plan

MERGED: dict[str, Any] = {
    "recover": {"round_iterations": None, "blocks": 4, "merge": 0.5, "batching": "mixed", "batch_size": 4}
}


class KillError(BaseException):
    """Simulates the death of the process."""


def with_engine(engine: str) -> dict[str, Any]:
    changes = copy.deepcopy(MERGED)
    changes["recover"]["engine"] = engine
    return changes


@pytest.mark.parametrize("engine", ["packed", "reference"])
@pytest.mark.parametrize("at", [2, 3, 12, 17])
def test_a_run_killed_inside_or_between_blocks_ends_with_the_same_bits(
    finished: Context, start: Start, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, engine: str, at: int
) -> None:
    """Three batches of four blocks of two iterations, a checkpoint after every iteration."""
    changes = with_engine(engine)
    whole = start(copy_run(finished, tmp_path / "whole", "select"), ("recover", "aggregate"), changes).run
    root = copy_run(finished, tmp_path / "run", "select")
    module, name = (reference, "adam") if engine == "reference" else (packed, "adam_")
    original, calls = getattr(module, name), [0]

    def stopping(*args: object, **options: object) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise KillError
        original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stopping)
        with pytest.raises(KillError):
            start(root, ("recover",), changes)
    run = start(root, ("recover", "aggregate"), changes).run
    assert images_of(run.distilled) == images_of(whole.distilled)
    assert (run.distilled / "manifest.csv").read_bytes() == (whole.distilled / "manifest.csv").read_bytes()
    assert manifest.problems(run.distilled) == []


def test_the_start_is_kept_for_the_merges_alone(finished: Context, start: Start, tmp_path: Any) -> None:
    context = start(copy_run(finished, tmp_path / "run", "select"), (), MERGED)
    batch = plan(4, 3, context.config.recover)[0]
    state = BatchFolder(context, batch).load()
    assert state.initial is not None and (state.initial == state.images).all()
    plain = start(copy_run(finished, tmp_path / "plain", "select"), ())
    assert BatchFolder(plain, plan(4, 3, plain.config.recover)[0]).load().initial is None


def test_card_and_report_name_the_blocks(finished: Context, start: Start, tmp_path: Any) -> None:
    run = start(copy_run(finished, tmp_path / "run", "select"), ("recover", "aggregate", "report"), MERGED).run
    assert "| optimisation | 8 iterations, blocks at 8, 8, 8, 8 pixels, merge 0.5, Adam" in (
        run.distilled / "README.md"
    ).read_text(encoding="utf-8")
    report = (run.report / "report.md").read_text(encoding="utf-8")
    assert "The run has 4 blocks, at 8, 8, 8, 8 pixels: 100.0% of the pixels of a run at 8 pixels." in report
    assert "Between two blocks, 0.5 of an image was kept and 0.5 of its start added." in report
