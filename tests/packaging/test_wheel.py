"""What a user gets from the wheel: it installs into an empty environment, imports, and runs a node."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import clusters, rpc
from kvstore.wire import rpc_pb2

ROOT = Path(__file__).resolve().parents[2]
NEWER_PYTHONS = ("3.12", "3.13", "3.14")
EXTRAS = "cli,speed"

pytestmark = [pytest.mark.slow, pytest.mark.network]


def run(*command: str | Path, timeout: float = 240) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def empty_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the wheel and its dependencies, and nothing else."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel)
    return python


def test_the_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"raft", "kvstore"} <= tops
    assert all(top in ("raft", "kvstore") or top.endswith(".dist-info") for top in tops), tops
    assert "raft/py.typed" in names
    assert "kvstore/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)


def test_the_wheel_holds_the_proto_files_beside_their_code(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = sorted((ROOT / "proto").rglob("*.proto"))
    assert sources
    for source in sources:
        name = source.relative_to(ROOT / "proto").as_posix()
        assert {name, name.replace(".proto", "_pb2.py")} <= names
        assert zipfile.ZipFile(wheel).read(name) == source.read_bytes()


def test_imports_in_an_empty_environment(empty_python: Path, tmp_path: Path) -> None:
    program = "import os; os.chdir(%r); import raft.core, kvstore; print(kvstore.__version__, kvstore.serve)"
    assert "serve" in run(empty_python, "-I", "-c", program % str(tmp_path))


@pytest.fixture
def node(empty_python: Path, tmp_path: Path) -> Iterator[clusters.Cluster]:
    program = [str(empty_python.parent / "kvstore"), "server"]
    with clusters.Cluster(label="wheel", program=program, folder=tmp_path, size=1, source=None) as cluster:
        yield cluster


def test_starts_a_node(node: clusters.Cluster) -> None:
    async def put_and_get() -> bytes:
        async with rpc.Store(node.endpoints[0]) as store:
            await store.put(rpc_pb2.PutRequest(key=b"a", value=b"1"), timeout=10)
            reply = await store.range(rpc_pb2.RangeRequest(key=b"a"), timeout=10)
            return reply.kvs[0].value

    assert asyncio.run(put_and_get()) == b"1"
    assert node.members[0].stop() == 0


@pytest.mark.parametrize("version", NEWER_PYTHONS)
def test_every_dependency_has_a_wheel(wheel: Path, tmp_path: Path, version: str) -> None:
    """Resolves for a newer Python without building anything: pip fails where a wheel is missing."""
    words = ["--dry-run", "--ignore-installed", "--only-binary=:all:", "--python-version", version]
    target = ["--target", tmp_path, f"{wheel}[{EXTRAS}]"]
    said = run(sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *words, *target)
    assert "grpcio" in said.split("Would install")[1]
