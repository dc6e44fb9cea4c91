"""The rooms of the package: nothing imports upward, and the launcher runs where torch is not installed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
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
    ("run",),
    ("data",),
    ("models", "distilled", "context"),
    ("training", "ranking"),
    ("recovery",),
    ("report",),
    ("export",),
    ("bench", "stages"),
    ("pipeline",),
    ("launch",),
    ("clean", "comparison"),
    ("cli", "api"),
)
HEIGHT = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
MODULES = sorted(PACKAGE.rglob("*.py")) + sorted(KERNELS.rglob("*.py"))


def room_of(path: Path) -> str:
    return "delt_kernels" if KERNELS in path.parents else path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_names(path: Path) -> Iterator[str]:
    """Dotted names that a module imports at run time, wherever in the module the import stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    skipped = {id(inner) for node in for_types for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported(path: Path) -> Iterator[str]:
    """The rooms that a module imports."""
    for name in imported_names(path):
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


def test_no_modules_import_each_other() -> None:
    modules = {
        ".".join(path.relative_to(base.parent).with_suffix("").parts): path
        for base in (PACKAGE, KERNELS)
        for path in base.rglob("*.py")
        if path.stem != "__init__"
    }
    # `from a.b import c` names the module a.b.c, or something in the module a.b.
    imports = {
        module: {name if name in modules else name.rpartition(".")[0] for name in imported_names(path)} & set(modules)
        for module, path in modules.items()
    }
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle


def test_no_stage_imports_another() -> None:
    for path in (PACKAGE / "stages").glob("*.py"):
        assert "stages" not in set(imported(path)), path


def test_the_top_of_the_package_shows_the_pipeline_alone() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert modules == {"api", "cli", "context", "errors", "keyed_random", "pipeline", "version"}


def test_the_launcher_does_not_import_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, delt_hpc.launch as package\n"
        "for module in pkgutil.iter_modules(package.__path__, 'delt_hpc.launch.'):\n"
        "    importlib.import_module(module.name)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
