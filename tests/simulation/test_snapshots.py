"""Whole members that compact their logs at once: snapshots under faults, with a swarm of its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from kvstore.testing.nodes import play
from kvstore.testing.plan import generate
from kvstore.testing.snapshot_faults import INSTALLED, RECEIVER_DIES, RESUMED

SEEDS = range(100, 108)
LENGTH_S = 12.0
CLASSES = ("crash", "isolate-leader", "partition", "delay")


@pytest.mark.slow
def test_snapshots_under_faults_break_no_guarantee() -> None:
    met: Counter[str] = Counter()
    for seed in SEEDS:
        plan = generate(seed, length_s=LENGTH_S, classes=CLASSES, features=("snapshots",))
        config = plan.config | {"checkpoint_ms": 20, "request_timeout_ms": 3000}
        plan = replace(plan, compaction_entries=3, catchup_entries=1, config=config)
        report = play(plan)
        met.update(report.probes)
    print(dict(met))
    assert met[INSTALLED] > len(SEEDS)
    assert met[RESUMED] > 0
    assert met[RECEIVER_DIES] > 0
