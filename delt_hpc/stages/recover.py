"""Recover: optimise the images of a class range, resuming every batch from its last checkpoint."""

from delt_hpc.config.class_range import ClassRange
from delt_hpc.context import Context, StageFolder
from delt_hpc.errors import UserError
from delt_hpc.recovery.auto import resolve_auto
from delt_hpc.recovery.batch_folder import BatchFolder
from delt_hpc.recovery.batches import of_classes, plan
from delt_hpc.recovery.initial import keep_initial
from delt_hpc.recovery.precision import check_device
from delt_hpc.recovery.run import recover_batches
from delt_hpc.run import late


def recover(context: Context, classes: ClassRange | None = None) -> None:
    """Recover every batch of the class range that is not finished yet; with 0 iterations, keep its initial images."""
    run, config = context.run, context.config
    check_device(config.recover, context.device)  # not earlier: other stages of the same run may use a CPU
    classes = context.class_range(classes)
    all_batches = plan(len(context.dataset.classes), config.select.ipc, config.recover)
    batches = of_classes(all_batches, classes)
    stage = StageFolder(context, "recover", run.recover)
    stage.start()
    unfinished = [folder for batch in batches if not (folder := BatchFolder(context, batch)).done()]
    if not unfinished:
        return
    if config.recover.init == "selected" and not late.all_done([run.selected]):
        raise UserError("no images are selected", where=str(run.selected), remedy="run the stage `select` first")
    if not config.recover.iterations:
        keep_initial(context, unfinished)
        context.reporter.say(f"recover: the initial images of classes {classes} are the distilled ones (0 iterations)")
        return
    stage.stamp_resolved({"recover.precision": resolve_auto(config.recover, context.device).precision})
    recover_batches(context, unfinished, all_batches, len(batches))
    context.reporter.say(f"recover: {len(unfinished)} batch(es) of classes {classes} finished")
