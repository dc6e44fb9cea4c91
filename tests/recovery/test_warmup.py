"""Packs of compiled code, and processes that start from them."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.toy import Start

from delt_hpc.config.load import dump_config
from delt_hpc.config.schema import Config, Recover
from delt_hpc.recovery import compile_cache
from delt_hpc.recovery.warmup import shortened

CPU = torch.device("cpu")


def test_the_pack_is_in_the_run_folder_or_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
    inside = compile_cache.folder(tmp_path, CPU)
    assert inside.parent == tmp_path / "compile-cache"
    assert torch.__version__ in inside.name
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path / "shared"))
    assert compile_cache.folder(tmp_path, CPU) == tmp_path / "shared" / inside.name


def test_without_a_pack_nothing_happens(tmp_path: Path) -> None:
    assert not compile_cache.unpack(tmp_path)


def test_files_of_both_caches_are_in_the_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"triton/key/kernel.cubin": b"\x7fELF", "inductor/ab/c.so": b"so", "inductor/triton/0/k/x.json": b"{}"}
    left = {"inductor/fxgraph/ab/graph": b"", "inductor/locks/ab.lock": b""}
    for name, content in (files | left).items():
        path = tmp_path / "one" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def below(root: Path) -> dict[str, Path]:
        return {"triton": root / "triton", "inductor": root / "inductor"}

    monkeypatch.setattr(compile_cache, "_folders", lambda: below(tmp_path / "one"))
    compile_cache.pack(tmp_path / "pack")
    other = tmp_path / "other"
    monkeypatch.setattr(compile_cache, "_folders", lambda: below(other))
    assert compile_cache.unpack(tmp_path / "pack")
    assert {str(path.relative_to(other)): path.read_bytes() for path in other.rglob("*") if path.is_file()} == files


def test_private_caches_are_empty_and_leave_the_user_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "earlier.so").touch()
    before = compile_cache._folders()
    with compile_cache.private():
        (path,) = {folder.parent for folder in compile_cache._folders().values()}
        compile_cache.pack(tmp_path / "pack")
    assert not path.exists()
    assert (compile_cache._folders(), "TRITON_CACHE_DIR" in os.environ) == (before, False)
    with tarfile.open(tmp_path / "pack" / compile_cache.FILES) as archive:
        assert archive.getnames() == []


def test_a_short_run_has_the_same_rounds() -> None:
    recover = Recover(iterations=4000, round_iterations=500)
    assert (shortened(recover).rounds, shortened(recover).iterations) == (recover.rounds, 8 * 5)
    assert shortened(Recover(iterations=3, round_iterations=1)).iterations == 3
    assert shortened(Recover(iterations=300, round_iterations=None)).rounds == 1


@pytest.mark.slow
def test_a_process_that_starts_from_the_pack_compiles_nothing_again(
    configure: Callable[..., Config], start: Start, tmp_path: Path
) -> None:
    """`warmup` in one process; recovery in another, whose cache folder is empty: every graph comes from the pack."""
    root, file = tmp_path / "run", tmp_path / "toy.yaml"
    changes = {"recover": {"compile": True}}
    file.write_text(dump_config(configure(changes)), encoding="utf-8")
    start(root, ("squeeze", "rank", "select"), changes)
    common = os.environ | {"OMP_NUM_THREADS": "1"}
    warmed = subprocess.run(
        [sys.executable, "-m", "delt_hpc.cli", "warmup", str(file), "--run", str(root)],
        env=common | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cold")}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "compile-cache" in warmed.stdout
    assert list((tmp_path / "cold").rglob("*")) == []
    script = (
        "import json, sys; from delt_hpc.cli import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "from torch._dynamo.utils import counters\n"
        "print(json.dumps(counters['inductor']))"
    )
    recovered = subprocess.run(
        [sys.executable, "-c", script, "recover", str(file), "--run", str(root), "--quiet"],
        env=common | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "warm")}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    counts = json.loads(recovered.stdout.splitlines()[-1])
    assert counts.get("fxgraph_cache_hit", 0) > 0
    assert counts.get("fxgraph_cache_miss", 0) == 0
