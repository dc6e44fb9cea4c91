"""What stages read and jobs do not download: fetched where `submit` runs, checked by `doctor`."""

from collections.abc import Iterator

from delt_hpc.config.schema import Config
from delt_hpc.data.catalog.specs import SPECS, root_of
from delt_hpc.launch.environment import Finding
from delt_hpc.launch.request import OpenedRun
from delt_hpc.run.folder import is_done

_HOW = "`delt-hpc fetch` gets it, and `submit` does so by itself"


def fetch(opened: OpenedRun) -> bool:
    """Download what jobs of the run need and this machine lacks; False if nothing was to be done.

    Raises:
        UserError: something cannot be had, saying which file belongs where.
    """
    data_is_here = not _data_set_is_missing(opened.config) or opened.config.data.name not in SPECS
    weights_are_needed = opened.config.teacher.source == "torchvision" and not is_done(opened.run.teacher)
    if data_is_here and not weights_are_needed:
        return False
    from delt_hpc import pipeline  # noqa: PLC0415

    pipeline.fetch(opened.config, opened.run, opened.classes)
    return True


def examine(opened: OpenedRun) -> Iterator[Finding]:
    """Is everything here that jobs of the run read?"""
    data, root = opened.config.data, root_of(opened.config.data)
    if not _data_set_is_missing(opened.config):
        yield Finding("OK", f"data set {data.name} is in {root}")
    elif data.name in SPECS:
        yield Finding("warning", f"data set {data.name} is not in {root}", f"{_HOW}; or set data.root")
    else:
        yield Finding("error", f"data set {data.name} is not in {root}", "set data.root")
    if opened.config.teacher.source != "torchvision" or is_done(opened.run.teacher):
        return
    from delt_hpc import pipeline  # noqa: PLC0415

    missing = pipeline.not_fetched(opened.config, opened.run, opened.classes)
    for path in missing:
        yield Finding("warning", f"the teacher's weights are not here: {path}", f"{_HOW}; or put the file there")
    if not missing:
        yield Finding("OK", f"the teacher's weights are here: {opened.config.teacher.weights}")


def _data_set_is_missing(config: Config) -> bool:
    data, root = config.data, root_of(config.data)
    return not ((root / data.train).is_dir() and (root / data.val).is_dir())
