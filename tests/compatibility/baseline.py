"""The earlier code that the present code must get on with, and members that run the one or the other."""

from __future__ import annotations

from pathlib import Path

from bench import clusters
from bench.clusters import Member

BASELINE = "779801600980c56300ab466d18544ba3b49b2cbc"
"""The commit whose data directories and messages the present code must understand, and whose code must
understand those of the present code."""


def check_code(code: Path, folder: Path) -> None:
    """Raise ClusterError if members in `folder` that are given `code` would import the installed copy."""
    clusters.ours(folder, label="checked", source=code).check_source()


def restart(member: Member, code: Path) -> None:
    """Stop the member in good order, and start it from its data directory with other code."""
    assert member.stop() == 0, member.tail()
    check_code(code, member.data_dir.parent)
    member.source = code
    member.start()
