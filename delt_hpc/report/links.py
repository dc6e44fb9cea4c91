"""The files and folders of the run that the report's reader may want to open."""

from delt_hpc.report.content import Link
from delt_hpc.run.folder import RunFolder

_ITEMS = (
    ("config.yaml", "every value of the configuration"),
    ("distilled/", "the distilled data set, one folder per class"),
    ("distilled/manifest.csv", "its images: checksum, real image it started from, iterations, losses"),
    ("selected/selected.csv", "the images that recovery started from"),
    ("ranking.csv", "the teacher's score of every real training image"),
    ("teacher/history.csv", "the teacher's training, epoch by epoch"),
    ("evaluate/", "result, training curve and confusion counts of every student"),
    ("timing.csv", "seconds, image-iterations and memory of every unit of work"),
    ("report/report.json", "all numbers of this page"),
    ("report/report.md", "this page as Markdown"),
)


def links(run: RunFolder) -> tuple[Link, ...]:
    """Those that exist, or that are written together with the page."""
    return tuple(
        Link(path, f"../{path}", note)
        for path, note in _ITEMS
        if path.startswith("report/") or (run.root / path).exists()
    )
