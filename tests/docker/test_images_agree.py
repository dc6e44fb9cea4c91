"""Dockerfile and delt.def describe the same image."""

import re
from pathlib import Path

from delt_hpc.version import VERSION

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
DEFINITION = (ROOT / "docker" / "delt.def").read_text(encoding="utf-8")

CACHES = {"XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"}
LABEL = "org.opencontainers.image."


def instruction(name: str) -> str:
    """The arguments of the Dockerfile's only instruction of that name."""
    (found,) = re.findall(rf"^{name} +(.*)$", DOCKERFILE, re.MULTILINE)
    return str(found)


def section(name: str) -> list[str]:
    """The lines of a section of the definition, without comments."""
    body = DEFINITION.split(f"\n%{name}\n")[1].split("\n%")[0]
    return [line.strip() for line in body.splitlines() if line.strip() and not line.strip().startswith("#")]


def test_environment() -> None:
    docker = dict(pair.split("=", 1) for pair in instruction("ENV").split())
    lines = [line.removeprefix("export ") for line in section("environment") if line.startswith("export ")]
    apptainer = dict(line.split("=", 1) for line in lines)
    assert docker.keys() == apptainer.keys() > CACHES
    assert {name: docker[name] for name in docker.keys() - CACHES} == {
        name: apptainer[name] for name in docker.keys() - CACHES
    }


def test_caches_lie_outside_the_image() -> None:
    docker = dict(pair.split("=", 1) for pair in instruction("ENV").split())
    assert all(docker[name].startswith("/tmp/") for name in CACHES)
    assert 'cache="/tmp/delt-hpc-$(id -u)"' in section("environment")
    for name in CACHES:
        (line,) = (line for line in section("environment") if line.startswith(f"export {name}="))
        assert re.search(rf'="\$\{{{name}:-\$cache', line), line


def test_base_image_is_the_same_and_pinned() -> None:
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
    arguments = dict(line.split("=", 1) for line in section("arguments"))
    assert defaults["BASE_IMAGE"] == arguments["BASE_IMAGE"]
    assert re.fullmatch(r"debian:[\w.-]+@sha256:[0-9a-f]{64}", defaults["BASE_IMAGE"])


def test_labels() -> None:
    docker = dict(re.findall(r'(\S+)="([^"]*)"', instruction("LABEL")))
    apptainer = dict(line.split(" ", 1) for line in section("labels"))
    revision = f"{LABEL}revision"
    assert (docker.pop(revision), apptainer.pop(revision)) == ("${REVISION}", "{{ REVISION }}")
    assert docker == apptainer
    assert docker[f"{LABEL}version"] == VERSION


def test_sources() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    context = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = dict(line.split() for line in section("files"))
    assert copied == {name: f"/opt/build/{name}" for name in context}
    assert all((ROOT / name).exists() for name in context)


def test_steps() -> None:
    docker = [line.split()[-1] for line in re.findall(r"^RUN .*docker/install \w+$", DOCKERFILE, re.MULTILINE)]
    apptainer = [line.split()[-1] for line in section("post") if "docker/install" in line]
    assert docker == apptainer == ["system", "dependencies", "package"]
