"""Generate Python modules from proto/**/*.proto beside the code that uses them.

    python tools/genproto.py            write the modules
    python tools/genproto.py --check    write nothing; fail if sources and modules disagree

`proto/a/b/*.proto` becomes `a/b/*_pb2.py` and `.pyi`. Two things differ from plain protoc output:

* Messages live in a descriptor pool private to their package (`_pool.py`). Other etcd clients carry
  the same message names under other file names; in the one default pool that is a fatal conflict.
* The compiler's version is pinned: its output imports on protobuf 6.31 up to, not including, 8.

Beside the modules, `_stamp.sha256` records what they were made from, so that a checkout without the
compiler can still tell whether they are fresh.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.resources
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILER_VERSION = "1.80.0"
STAMP_NAME = "_stamp.sha256"
POOL_NAME = "_pool.py"
POOL_LINE = "_descriptor_pool.Default().AddSerializedFile("
POOL_IMPORT = "from google.protobuf import descriptor_pool as _descriptor_pool\n"
MARKER_LINE = "# NO CHECKED-IN PROTOBUF GENCODE\n"
POOL_SOURCE = '''"""The descriptor pool of this package alone: equal message names elsewhere do not clash."""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
'''


class Stale(Exception):
    """Generated modules do not match their sources."""


def packages(root: Path) -> dict[Path, list[Path]]:
    """Folders under proto/ that hold sources, each with its sources, all relative to proto/."""
    proto = root / "proto"
    found: dict[Path, list[Path]] = {}
    for source in sorted(proto.rglob("*.proto")):
        relative = source.relative_to(proto)
        found.setdefault(relative.parent, []).append(relative)
    return found


def compiler_is_pinned() -> bool:
    """Whether the compiler that made the checked-in modules is installed."""
    try:
        return importlib.metadata.version("grpcio-tools") == COMPILER_VERSION
    except importlib.metadata.PackageNotFoundError:
        return False


def privatise(text: str, package: Path) -> str:
    """Move a generated module from the default descriptor pool into its package's own."""
    if text.count(POOL_LINE) != 1 or text.count(POOL_IMPORT) != 1:
        raise SystemExit("genproto: the compiler's output has changed shape; adapt tools/genproto.py")
    pool_import = f"from {'.'.join(package.parts)} import _pool\n"
    text = text.replace(POOL_IMPORT, pool_import).replace(MARKER_LINE, "")
    return text.replace(POOL_LINE, "_pool.POOL.AddSerializedFile(")


def compile_package(root: Path, package: Path, sources: list[Path]) -> dict[Path, str]:
    """Text of every module of one package, by path relative to the repository."""
    from grpc_tools import protoc  # type: ignore[import-untyped]  # the compiler ships no types

    includes = importlib.resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [
            "protoc",
            f"-I{root / 'proto'}",
            f"-I{includes}",
            f"--python_out={scratch}",
            f"--pyi_out={scratch}",
            *(str(source) for source in sources),
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit(f"genproto: the compiler refused proto/{package}")
        outputs = {package / POOL_NAME: POOL_SOURCE}
        for made in sorted((Path(scratch) / package).iterdir()):
            text = made.read_text(encoding="utf-8")
            outputs[package / made.name] = privatise(text, package) if made.suffix == ".py" else text
    return outputs


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def stamp_of(root: Path, sources: list[Path], outputs: dict[Path, str]) -> str:
    """What the modules were made from, one line per file, in a fixed order."""
    lines = [f"compiler grpcio-tools {COMPILER_VERSION}"]
    lines += [f"{digest((root / 'proto' / source).read_bytes())}  proto/{source}" for source in sources]
    lines += [f"{digest(text.encode())}  {path}" for path, text in sorted(outputs.items())]
    return "\n".join(lines) + "\n"


def generated_files(root: Path, package: Path) -> dict[Path, str]:
    """The modules as they lie on disk."""
    folder = root / package
    names = sorted([*folder.glob("*_pb2.py"), *folder.glob("*_pb2.pyi"), *folder.glob(POOL_NAME)])
    return {path.relative_to(root): path.read_text(encoding="utf-8") for path in names}


def write(root: Path) -> None:
    """Generate everything."""
    if not compiler_is_pinned():
        raise SystemExit(f"genproto: needs grpcio-tools=={COMPILER_VERSION}")
    for package, sources in packages(root).items():
        outputs = compile_package(root, package, sources)
        for path in generated_files(root, package).keys() - outputs.keys():
            (root / path).unlink()
        for path, text in outputs.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        (root / package / STAMP_NAME).write_text(stamp_of(root, sources, outputs), encoding="utf-8")


def check(root: Path) -> None:
    """Raise Stale when any module differs from what its source says, as far as can be checked here."""
    for package, sources in packages(root).items():
        on_disk = generated_files(root, package)
        stamp = root / package / STAMP_NAME
        recorded = stamp.read_text(encoding="utf-8") if stamp.exists() else ""
        if recorded != stamp_of(root, sources, on_disk):
            raise Stale(f"{package}: modules and proto/{package} disagree; run tools/genproto.py")
        if compiler_is_pinned() and on_disk != compile_package(root, package, sources):
            raise Stale(f"{package}: modules are not what the compiler makes; run tools/genproto.py")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when stale")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository to work on")
    options = parser.parse_args(arguments)
    if not options.check:
        write(options.root)
        return 0
    try:
        check(options.root)
    except Stale as stale:
        sys.stderr.write(f"genproto: {stale}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
