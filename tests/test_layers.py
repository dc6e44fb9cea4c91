"""The rooms of the package: nothing imports upward, and the launcher runs where torch is not installed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import delt_hpc
import delt_kernels

PACKAGE, KERNELS = Path(delt_hpc.__file__).parent, Path(delt_kernels.__file__).parent

# Lowest first. A module may import from its own layer and from those before it; the names are of rooms, and of the
# modules at the top of the package.
LAYERS = (
    ("errors", "version", "keyed_random", "delt_kernels"),
    ("config",),
    ("run", "options"),
    ("data",),
    ("models", "distilled", "context"),
    ("training", "ranking"),
    ("recovery",),
    ("report",),
    ("bench", "stages"),
    ("pipeline",),
    ("launch",),
    ("cli", "api"),
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py")) + sorted(KERNELS.rglob("*.py"))


def room_of(path: Path) -> str:
    return "delt_kernels" if KERNELS in path.parents else path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
    """The rooms that a module imports, wherever in the module the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "delt_kernels":
                yield package
            elif package == "delt_hpc" and rest:
                yield rest.split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: "/".join(path.parts[-2:]))
def test_nothing_imports_upward(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        # The package offers the functions of `api`, which it imports only when they are used.
        assert set(imported(path)) <= {"version", "api"}
        return
    above = {other for other in imported(path) if HEIGHT[other] > HEIGHT[room]}
    assert not above, f"{room} imports from above: {sorted(above)}"


def test_no_stage_imports_another() -> None:
    for path in (PACKAGE / "stages").glob("*.py"):
        assert "stages" not in set(imported(path)), path


def test_the_top_of_the_package_shows_the_pipeline_alone() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == {"api", "cli", "context", "errors", "keyed_random", "options", "pipeline", "version"}


def test_the_launcher_does_not_import_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, delt_hpc.launch as package\n"
        "for module in pkgutil.iter_modules(package.__path__, 'delt_hpc.launch.'):\n"
        "    importlib.import_module(module.name)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
