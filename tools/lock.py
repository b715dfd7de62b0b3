"""Resolve the development dependencies and pin them in `requirements-dev.lock`.

    python tools/lock.py            rewrite the lock
    python tools/lock.py --check    fail if a requirement of pyproject.toml is not met by the lock

The lock names every package that the resolver chose for: the runtime dependencies, every extra, and the
dependency group `dev`. It names no index, so it works wherever pip is configured to look.
Resolution runs on the lowest supported Python, so that no pin needs a newer one.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements-dev.lock"
PYTHON_MIN = (3, 11)
HEADER = "# Pinned development environment, written by tools/lock.py from pyproject.toml. Do not edit.\n"


def requirements() -> list[str]:
    """Every requirement of pyproject.toml: runtime, all extras, and the group `dev`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: list[str] = list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        found += extra
    found += project["dependency-groups"]["dev"]
    found += project["build-system"]["requires"]
    return found


def canonical(name: str) -> str:
    """The name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(wanted: list[str]) -> dict[str, str]:
    """Ask pip for one consistent set of versions; nothing is installed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", str(report), *wanted], check=True)
        installed = json.loads(report.read_text())["install"]
    return {canonical(item["metadata"]["name"]): item["metadata"]["version"] for item in installed}


def locked() -> dict[str, str]:
    """The pins of the lock as it stands."""
    lines = (line for line in LOCK.read_text().splitlines() if line and not line.startswith("#"))
    return dict(line.split("==", 1) for line in lines)


def missing(wanted: list[str], pins: dict[str, str]) -> list[str]:
    """The requirements without a pin, or whose pin lies outside them."""
    from packaging.requirements import Requirement  # a development dependency; only --check needs it

    found = []
    for text in wanted:
        requirement = Requirement(text)
        pin = pins.get(canonical(requirement.name))
        if pin is None or not requirement.specifier.contains(pin):
            found.append(f"{text}: the lock has {pin or 'nothing'}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if the lock is behind")
    if parser.parse_args().check:
        behind = missing(requirements(), locked())
        sys.stderr.write("".join(f"requirements-dev.lock: {line}\n" for line in behind))
        return 1 if behind else 0
    if sys.version_info[:2] != PYTHON_MIN:
        sys.stderr.write(f"run this with Python {'.'.join(map(str, PYTHON_MIN))}, the lowest supported\n")
        return 2
    pins = resolve(requirements())
    LOCK.write_text(HEADER + "".join(f"{name}=={pins[name]}\n" for name in sorted(pins)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
