"""A run of whole members as data: settings, features and faults.

Drawn from a seed or read from JSON. Draws during the run (delays, what a crash leaves, the clients'
operations) come from named streams of the same seed, so a shortened plan stays similar to the whole one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kvstore.testing.fault_schedule import Draw, Fault
from kvstore.testing.features import FEATURES, stream_key
from kvstore.testing.lease_feature import LeaseFeature
from kvstore.testing.membership_feature import MembershipFeature
from kvstore.testing.snapshot_faults import SnapshotFaults
from raft.sim.kernel import stream
from raft.storage.wal import SEGMENT_BYTES_MIN

FORMAT_VERSION = 1

FEATURES["leases"] = LeaseFeature
FEATURES["members"] = MembershipFeature
FEATURES["snapshots"] = SnapshotFaults

LENGTH_S = 30.0
"""Virtual time under faults: enough for dozens of elections; about a second of real time."""

CALL_EVERY_S = (0.006, 0.015)
"""Time between two calls of all clients together, without faults. More than 500 operations cost more than
they show."""

FEATURE_PROBABILITY = 0.5
"""Probability of each feature to be in a run. The plain clients always are."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. Times in virtual seconds."""

    seed: int
    size: int = 3
    """Voters at the start."""
    length_s: float = LENGTH_S
    """Duration of the fault phase, before healing."""
    config: dict[str, Any] = field(default_factory=dict)
    """Settings of `raft.node.NodeConfig` besides the ids."""
    keys: int = 3
    clients: int = 4
    think_s: float = 0.05
    """A client's pause between two operations, on average."""
    padding: int = 0
    """Longest padding of a value, in bytes."""
    roaming: bool = True
    """Whether each operation goes to any member; otherwise a client stays with the one it began with."""
    operations_max: int = 1 << 30
    """Operations of all clients together; a shortened run has few."""
    segment_bytes: int = 1 << 16
    compaction_entries: int = 1024
    catchup_entries: int = 5000
    """Entries a log gathers before it is compacted."""
    features: tuple[str, ...] = ()
    """What is exercised besides puts, deletes, comparisons and reads; see `features`."""
    recovery: bool = True
    """Whether a majority is healed at the end and must recover."""
    noise: bool = True
    """Whether the members outside that majority are then, at random, dead, up, or partitioned in one
    direction."""
    faults: tuple[Fault, ...] = ()

    @property
    def name(self) -> str:
        kinds = sorted({fault.kind for fault in self.faults})
        return f"seed {self.seed} ({self.size} members, {', '.join((*self.features, *kinds)) or 'quiet'})"

    def to_json(self) -> str:
        return json.dumps({"version": FORMAT_VERSION, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Raises ValueError for another format."""
        fields = json.loads(text)
        if fields.pop("version", None) != FORMAT_VERSION:
            raise ValueError("a plan of another format")
        fields["features"] = tuple(fields["features"])
        fields["faults"] = tuple(_fault(*fault) for fault in fields["faults"])
        return cls(**fields)


def _fault(
    at_s: float, kind: str, for_s: float, members: Sequence[int], links: Sequence[Sequence[int]], detail: Any
) -> Fault:
    return Fault(at_s, kind, for_s, tuple(members), tuple((a, b) for a, b in links), detail)


def quiet(seed: int, *, length_s: float = 5.0, features: Sequence[str] = ()) -> Plan:
    """Three members, one client, no faults: a mutant worth having is not caught by it."""
    return Plan(seed, length_s=length_s, clients=1, roaming=False, features=tuple(features), noise=False)


def generate(
    seed: int, *, length_s: float = LENGTH_S, classes: Sequence[str] = (), features: Sequence[str] = ()
) -> Plan:
    """A random run. `classes` and `features` name the only ones to use, instead of a drawn swarm."""
    rng = stream(seed, "plan")
    size = rng.choice((3, 3, 5))
    faults = Draw(stream(seed, "plan/faults"), size).schedule(length_s, classes)
    clients = rng.choice((4, 8, 16))
    plan = Plan(
        seed,
        size=size,
        length_s=length_s,
        config=_draw_config(seed),
        keys=rng.choice((1, 3, 8)),
        clients=clients,
        think_s=clients * rng.choice(CALL_EVERY_S),
        padding=rng.choice((0, 2000)),
        segment_bytes=rng.choice((SEGMENT_BYTES_MIN, 1 << 16)),
        compaction_entries=rng.choice((3, 40, 1024)),
        catchup_entries=stream(seed, "catchup").choice((1, 10, 5000)),
        features=tuple(features) or _draw_features(seed),
        faults=tuple(faults),
    )
    return Plan.from_json(plan.to_json())  # exactly as read from JSON


def _draw_features(seed: int) -> tuple[str, ...]:
    return tuple(
        name
        for name in FEATURES
        if stream(seed, f"plan/feature/{stream_key(name)}").random() < FEATURE_PROBABILITY
    )


def _draw_config(seed: int) -> dict[str, Any]:
    """Small limits, so that runs reach them."""
    rng = stream(seed, "plan/config")
    return {
        "request_timeout_ms": rng.choice((1500, 3000, 7000)),
        "batch_operations_max": rng.choice((1, 3, 256)),
        "gather_ms": rng.choice((1, 10, 100)),
        "batches_in_flight_max": rng.choice((1, 2, 64)),
        "bytes_in_flight_max": rng.choice((300, 16 << 20)),
        "checkpoint_bytes": rng.choice((500, 1 << 20)),
        "checkpoint_ms": rng.choice((20, 1000)),
        "backend_retry_ms": 500,
    }
