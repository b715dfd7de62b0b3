"""The code of the baseline, extracted once."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import clusters
from tests.compatibility.baseline import BASELINE


@pytest.fixture(scope="session")
def old_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `raft` and `kvstore` of the baseline."""
    try:
        return clusters.extract(BASELINE, tmp_path_factory.mktemp("baseline"))
    except clusters.ClusterError as error:
        pytest.skip(f"needs the history up to {BASELINE[:7]}: {error}")
