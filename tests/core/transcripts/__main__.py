"""`make transcripts DIR=<folder>`: every script of a folder, replayed and judged at both levels."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.core.transcripts.judge import judge_file

SUBFOLDER = "raft-interaction"


def scripts(folder: Path) -> list[Path]:
    """The scripts of a folder, or of its subfolder that holds this kind."""
    inner = folder / SUBFOLDER
    return sorted((inner if inner.is_dir() else folder).glob("*.txt"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="make transcripts", description=__doc__)
    parser.add_argument("folder", nargs="?", default=os.environ.get("KVSTORE_TESTDATA"), help="scripts")
    options = parser.parse_args()
    if not options.folder:
        parser.error("no folder given, and KVSTORE_TESTDATA names none")
    paths = scripts(Path(options.folder))
    passed = failed = 0
    for path in paths:
        for verdict in judge_file(path):
            passed += verdict.passed
            failed += not verdict.passed
            word = "passed" if verdict.passed else "FAILED"
            print(f"{word}  {verdict.level:7}  {path.name}  ({verdict.compared} blocks)")
            for waiver in verdict.waived:
                print(f"        waived at line {waiver.line}: {waiver.reason}")
            for difference in verdict.differences:
                print("        " + difference.replace("\n", "\n        "))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not paths else 0


if __name__ == "__main__":
    sys.exit(main())
