"""The two levels of simulation, each seed run to one common result.

* `core`: bare consensus cores against a model of everything around them (`raft.sim`); fast and broad.
* `node`: whole members, event loop and engine and log of the product, on a fake network, disk and clock
  (`kvstore.testing.nodes`); slow and deep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kvstore.testing.nodes import SimulationFailed, run_seed
from kvstore.testing.plan import LENGTH_S as NODE_LENGTH_S
from kvstore.testing.probes import NODE_PROBES, NODE_UNREACHED
from raft.sim import PROBES, UNREACHED, generate, run

CORE_LENGTH_S = 60.0
"""Virtual seconds of faults in each seed of cores; recovery comes on top."""

CORE_OPERATIONS_PER_S_MIN = 20
"""Client calls a seed of cores must issue, on average."""

CORE_OK_SHARE_MIN = 0.1
"""A seed of cores that serves a smaller share of its calls shows little: members were removed, or the quorum
was lost early. It is inconclusive, and counted."""

FAULTS_MIN = 3
"""Faults that a seed of either level must have injected."""


@dataclass(slots=True)
class SeedResult:
    level: str
    seed: int
    failure: str = ""
    """The violated invariant and what was seen; empty when all held."""
    inconclusive: str = ""
    """Why the run shows too little to be counted as passed; empty when it is conclusive."""
    virtual_s: float = 0.0
    busy_s: float = 0.0
    """Virtual seconds with enough client calls and a fault active or healed shortly before."""
    processor_s: float = 0.0
    faults: Mapping[str, int] = field(default_factory=dict)
    operations: Mapping[str, int] = field(default_factory=dict)
    """Client calls by kind and outcome, as `write ok`."""
    probes: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    """Further figures of the level."""

    @property
    def succeeded(self) -> int:
        return sum(count for how, count in self.operations.items() if how.endswith(" ok"))


def run_core(seed: int, length_s: float) -> SeedResult:
    began_s = time.process_time()
    schedule = generate(seed, seconds=int(length_s))
    report = run(schedule)
    result = SeedResult(
        "core",
        seed,
        failure="" if report.invariant is None else report.detail,
        virtual_s=report.virtual_us / 1e6,
        busy_s=report.busy_us / 1e6,
        processor_s=time.process_time() - began_s,
        faults=report.faults,
        operations={f"write {how}": count for how, count in report.writes.items()}
        | {f"read {how}": count for how, count in report.reads.items()},
        probes=report.probes,
        counts={"events": report.events, "terms": report.terms},
    )
    calls = len(schedule.ops)
    if calls < CORE_OPERATIONS_PER_S_MIN * length_s:
        result.inconclusive = f"only {calls} calls"
    elif result.succeeded < CORE_OK_SHARE_MIN * calls:
        result.inconclusive = f"only {result.succeeded} of {calls} calls served"
    elif sum(report.faults.values()) < FAULTS_MIN:
        result.inconclusive = f"only {sum(report.faults.values())} faults"
    return result


def run_nodes(seed: int, length_s: float, classes: tuple[str, ...] = ()) -> SeedResult:
    began_s = time.process_time()
    try:
        report = run_seed(seed, length_s=length_s, classes=classes)
    except SimulationFailed as failure:
        return SeedResult("node", seed, str(failure), processor_s=time.process_time() - began_s)
    result = SeedResult(
        "node",
        seed,
        inconclusive=report.inconclusive,
        virtual_s=report.virtual_s,
        busy_s=report.busy_s,
        processor_s=time.process_time() - began_s,
        faults=report.faults,
        operations=report.operations,
        probes=report.probes,
        counts={
            name: getattr(report, name)
            for name in ("applied", "leaders", "torn", "searched", "undecided", "beyond_budget")
        }
        | {f"process {how}": count for how, count in report.processes.items()},
    )
    if not result.inconclusive and sum(report.faults.values()) < FAULTS_MIN:
        result.inconclusive = f"only {sum(report.faults.values())} faults"
    return result


class Level(NamedTuple):
    """How seeds of one level are run, and which situations they should meet."""

    run: Callable[[int, float], SeedResult]
    length_s: float
    probes: tuple[str, ...]
    unreached: Mapping[str, str]
    """Probes that a campaign cannot reach, each with the reason. Reaching one contradicts its reason."""
    ok_share_min: float
    """A campaign that serves a smaller share of all calls is inconclusive: it has mostly tested refusals."""
    seeds_for_probes: int
    """From this many seeds on, a probe missed without a recorded reason fails the campaign."""


LEVELS: dict[str, Level] = {
    "core": Level(run_core, CORE_LENGTH_S, PROBES, UNREACHED, 0.4, 2_000),
    "node": Level(run_nodes, NODE_LENGTH_S, NODE_PROBES, NODE_UNREACHED, 0.4, 400),
}
