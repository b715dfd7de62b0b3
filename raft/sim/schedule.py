"""A run as data: all inputs of the cores. Generated from a seed, or read from JSON.

Faults and operations are plain lists, so a failing run is shortened by removing entries. Random choices of
the run itself (delays, losses, what a crash leaves) come from streams of the same seed.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from raft.sim.kernel import MILLISECOND, SECOND, stream

FORMAT_VERSION = 1


class Fault(NamedTuple):
    """One fault. `member` 0 means the leader when it begins."""

    kind: str
    at: int
    until: int
    """When it ends; equals `at` for an instant fault."""
    args: dict[str, Any]


class Op(NamedTuple):
    """One client call; `pick` chooses the member it is sent to."""

    at: int
    kind: str
    """write, or read."""
    pick: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run. Times in virtual microseconds."""

    seed: int
    size: int = 3
    """Voters at the start, members 1..size."""
    spares: int = 0
    """Further processes, which a membership change may add."""
    duration_us: int = 60 * SECOND
    tick_us: int = 100 * MILLISECOND
    drift: float = 0.0
    """Each member's clock runs wrong by up to this share."""
    core: dict[str, Any] = field(default_factory=dict)
    """Settings of `raft.core.Config` besides the member id."""
    base_us: int = 1 * MILLISECOND
    jitter_us: int = 0
    ordered: bool = True
    sync_us: int = 0
    """A sync takes about this long; 0 is a disk that takes no time at all."""
    apply_us: int = 0
    lazy_us: int = 0
    """Longest wait before the Ready is taken after an input; 0 takes it after every input."""
    compact_every: int = 0
    """Entries applied between checkpoints; 0 never compacts."""
    compact_keep: int = 0
    """Entries kept in the log below the checkpoint."""
    liveness: bool = True
    """Whether a majority is healed at the end and must recover."""
    faults: tuple[Fault, ...] = ()
    ops: tuple[Op, ...] = ()

    def to_json(self) -> str:
        """One line per fault and operation would be long; this is compact and stable."""
        return json.dumps({"version": FORMAT_VERSION, **asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """Raises ValueError for another format."""
        fields = json.loads(text)
        if fields.pop("version", None) != FORMAT_VERSION:
            raise ValueError("a schedule of another format")
        fields["faults"] = tuple(Fault(*fault) for fault in fields["faults"])
        fields["ops"] = tuple(Op(*op) for op in fields["ops"])
        return cls(**fields)


def quiet(seed: int, *, seconds: int = 6, rate: int = 20) -> Schedule:
    """Three members without faults: disks take no time, and the one election is held without a pre-vote.
    A mutant must survive this run, or finding it needs no simulation."""
    duration = seconds * SECOND
    gap = SECOND // rate
    ops = tuple(
        Op(at, "read" if number % 4 == 3 else "write", number)
        for number, at in enumerate(range(2 * SECOND, duration, gap))
    )
    return Schedule(
        seed,
        duration_us=duration,
        core={"pre_vote": False},
        compact_every=50,
        compact_keep=20,
        liveness=False,
        ops=ops,
    )


# ---------------------------------------------------------------------- generation

OPS_PER_SECOND = (25, 30, 40)
FAULT_SHARE = 0.8
"""Faults begin within this first part of a run."""


def generate(seed: int, *, seconds: int = 60) -> Schedule:
    """A random run: a subset of the kinds of fault, each kept with probability one half."""
    rng = stream(seed, "schedule")
    size = rng.choice((1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 7))
    stable_leader = rng.random() < 0.6
    duration = seconds * SECOND
    schedule = Schedule(
        seed,
        size=size,
        spares=rng.choice((0, 1, 2, 2)),
        duration_us=duration,
        tick_us=rng.choice((50, 100, 100)) * MILLISECOND,
        drift=rng.choice((0.0, 0.05, 0.2)),
        core=_core_settings(rng, stable_leader=stable_leader),
        base_us=rng.choice((200, 1_000, 5_000)),
        jitter_us=rng.choice((0, 2_000, 20_000)),
        ordered=rng.random() < 0.4,
        sync_us=rng.choice((300, 1_000, 10_000)),
        apply_us=rng.choice((0, 500, 5_000)),
        lazy_us=rng.choice((0, 0, 1_000)),
        compact_every=rng.choice((0, 1, 3, 10, 50)),
        compact_keep=rng.choice((0, 0, 1, 5, 20)),
    )
    faults: list[Fault] = []
    while len(faults) < 3:
        for name, make in _CLASSES.items():
            own = stream(seed, f"faults/{name}/{len(faults)}")
            if rng.random() < 0.5:
                faults += make(own, schedule)
    return replace(schedule, faults=tuple(sorted(faults, key=lambda f: f.at)), ops=_ops(rng, duration))


def _core_settings(rng: random.Random, *, stable_leader: bool) -> dict[str, Any]:
    return {
        "election_ticks": rng.choice((3, 5, 10)),
        "append_entries_max": rng.choice((1, 1, 2, 64)),
        "append_bytes_max": rng.choice((1, 64, 1 << 20)),
        "inflight_messages_max": rng.choice((1, 2, 4, 64)),
        "inflight_bytes_max": rng.choice((64, 1 << 20)),
        "uncommitted_bytes_max": rng.choice((200, 1 << 20)),
        "apply_bytes_max": rng.choice((1, 64, 1 << 20)),
        "applying_bytes_max": rng.choice((1, 256, 1 << 20)),
        "pending_reads_max": rng.choice((16, 64)),
        "commit_broadcast_deferred": rng.random() < 0.3,
        "pre_vote": stable_leader or rng.random() < 0.3,
        "check_quorum": stable_leader,
        "withhold_votes": stable_leader,
    }


def _ops(rng: random.Random, duration: int) -> tuple[Op, ...]:
    count = rng.choice(OPS_PER_SECOND) * (duration // SECOND)
    share = rng.choice((0.1, 0.3, 0.5))
    times = sorted([rng.randrange(duration) for _ in range(count)])
    return tuple(Op(at, "read" if rng.random() < share else "write", rng.randrange(64)) for at in times)


def _times(rng: random.Random, schedule: Schedule, most: int, longest_us: int) -> list[tuple[int, int]]:
    last = int(schedule.duration_us * FAULT_SHARE)
    spans = []
    for _ in range(rng.randint((most + 2) // 3, most)):
        at = rng.randrange(last)
        spans.append((at, min(at + rng.randint(longest_us // 50, longest_us), schedule.duration_us)))
    return spans


def _everyone(schedule: Schedule) -> list[int]:
    return list(range(1, schedule.size + schedule.spares + 1))


def _member(rng: random.Random, schedule: Schedule) -> int:
    """Some member, or (half the time) the leader."""
    return 0 if rng.random() < 0.5 else rng.choice(_everyone(schedule))


def _loss(rng: random.Random, schedule: Schedule) -> list[Fault]:
    return [
        Fault("drop", at, until, {"share": rng.choice((0.02, 0.1, 0.3))})
        for at, until in _times(rng, schedule, 4, 15 * SECOND)
    ]


def _delay(rng: random.Random, schedule: Schedule) -> list[Fault]:
    return [
        Fault("slow", at, until, {"us": rng.choice((5_000, 50_000)), "member": _member(rng, schedule)})
        for at, until in _times(rng, schedule, 3, 10 * SECOND)
    ]


def _reorder(rng: random.Random, schedule: Schedule) -> list[Fault]:
    return [
        Fault("tail", at, until, {"share": rng.choice((0.02, 0.1, 0.4))})
        for at, until in _times(rng, schedule, 3, 20 * SECOND)
    ]


def _repeat(rng: random.Random, schedule: Schedule) -> list[Fault]:
    return [
        Fault("duplicate", at, until, {"share": rng.choice((0.02, 0.1, 0.3))})
        for at, until in _times(rng, schedule, 3, 20 * SECOND)
    ]


_SHAPES = (
    "halves",
    "one",
    "one",
    "inbound",
    "outbound",
    "bridge",
    "ring",
    "swizzle",
    "flap",
    "usurp",
    "usurp",
    "usurp",
)


def _partitions(rng: random.Random, schedule: Schedule) -> list[Fault]:
    faults = []
    for at, until in _times(rng, schedule, 20, 6 * SECOND):
        members = _everyone(schedule)
        rng.shuffle(members)
        split = rng.randint(1, len(members))
        left, right = members[:split], members[split:]
        shape = rng.choice(_SHAPES)
        if shape == "swizzle":
            for member in left:
                begin, end = sorted((rng.randint(at, until), rng.randint(at, until)))
                faults.append(Fault("isolate", begin, end, {"member": member, "way": "both"}))
        elif shape == "flap":
            phase = int(schedule.tick_us * rng.choice((1, 5, 20)))
            flapping = {"member": left[0], "way": "both"}
            faults += [Fault("isolate", t, t + phase, flapping) for t in range(at, until, 2 * phase)]
        elif shape in ("one", "inbound", "outbound"):
            way = {"one": "both", "inbound": "in", "outbound": "out"}[shape]
            faults.append(Fault("isolate", at, until, {"member": _member(rng, schedule), "way": way}))
        elif shape == "usurp":
            # A member is isolated, briefly or long, and returns at the moment the leader crashes.
            until = at + int(20_000 * 300 ** rng.random())
            away = 0 if rng.random() < 0.7 else rng.choice(members)
            faults.append(Fault("isolate", at, until, {"member": away, "way": "both"}))
            faults.append(
                Fault("crash", until, until + rng.randint(1, 3 * SECOND), {"member": 0, "amid": ""})
            )
        elif shape == "ring":
            faults.append(Fault("partition", at, until, {"pairs": _ring(members)}))
        else:
            if shape == "bridge":
                right = right[1:]  # its first member hears both sides
            pairs = [[a, b] for a in left for b in right] + [[b, a] for a in left for b in right]
            faults.append(Fault("partition", at, until, {"pairs": pairs}))
    return faults


def _ring(members: list[int]) -> list[list[int]]:
    """Every member sees a majority, no two the same: each hears only its nearest neighbours."""
    count = len(members)
    reach = max(count // 4, 1)
    return [
        [a, b]
        for i, a in enumerate(members)
        for j, b in enumerate(members)
        if i != j and min((i - j) % count, (j - i) % count) > reach
    ]


def _crashes(rng: random.Random, schedule: Schedule) -> list[Fault]:
    faults = []
    for at, until in _times(rng, schedule, 16, 5 * SECOND):
        amid = rng.choice(("", "", "sync", "vote", "apply"))
        faults.append(Fault("crash", at, until, {"member": _member(rng, schedule), "amid": amid}))
    if rng.random() < 0.4:
        at = rng.randrange(int(schedule.duration_us * FAULT_SHARE))
        until = at + rng.randint(1, 2 * SECOND)
        faults += [
            Fault("crash", at, until, {"member": member, "amid": ""}) for member in _everyone(schedule)
        ]
    return faults


def _pauses(rng: random.Random, schedule: Schedule) -> list[Fault]:
    return [
        Fault("pause", at, until, {"member": _member(rng, schedule)})
        for at, until in _times(rng, schedule, 5, 6 * SECOND)
    ]


def _slow_disks(rng: random.Random, schedule: Schedule) -> list[Fault]:
    return [
        Fault("disk", at, until, {"member": _member(rng, schedule), "us": rng.choice((20_000, 500_000))})
        for at, until in _times(rng, schedule, 4, 10 * SECOND)
    ]


def _narrow(rng: random.Random, schedule: Schedule) -> list[Fault]:
    return [
        Fault("narrow", at, until, {"capacity": rng.choice((1, 2, 5, 20))})
        for at, until in _times(rng, schedule, 3, 15 * SECOND)
    ]


def _rolling(rng: random.Random, schedule: Schedule) -> list[Fault]:
    """Restarts of all members one after the other, or of one again and again."""
    faults = []
    for at, _ in _times(rng, schedule, 3, SECOND):
        members = _everyone(schedule)
        rng.shuffle(members)
        if rng.random() < 0.5:
            members = [members[0]] * rng.randint(3, 6)
        for member in members:
            down = rng.randint(1, 500_000)
            faults.append(Fault("crash", at, at + down, {"member": member, "amid": ""}))
            at += down + rng.randint(1, SECOND)
    return faults


def _lures(rng: random.Random, schedule: Schedule) -> list[Fault]:
    """The leader reaches only one member, whose slow disk is still writing the leader's entries when another
    leader, elected by the rest, overwrites them."""
    faults = []
    for at, until in _times(rng, schedule, 12, 8 * SECOND):
        member = rng.choice(_everyone(schedule))
        faults.append(Fault("lure", at, until, {"member": 0, "with": member}))
        slow = {"member": member, "us": rng.choice((100_000, 400_000, 1_500_000))}
        faults.append(Fault("disk", at, min(until + 2 * SECOND, schedule.duration_us), slow))
    return faults


def _churn(rng: random.Random, schedule: Schedule) -> list[Fault]:
    """Membership changes, some close together, some proposed to the next leader once it is elected."""
    faults = []
    for at, _ in _times(rng, schedule, 12, SECOND):
        until = at + rng.choice((0, 0, 10 * SECOND))
        faults.append(Fault("member", at, until, {"pick": rng.randrange(1 << 30)}))
        if rng.random() < 0.5:
            at += rng.randrange(50_000)
            faults.append(Fault("member", at, at, {"pick": rng.randrange(1 << 30)}))
    return faults


def _transfers(rng: random.Random, schedule: Schedule) -> list[Fault]:
    return [
        Fault("transfer", at, at, {"to": rng.choice(_everyone(schedule))})
        for at, _ in _times(rng, schedule, 8, SECOND)
    ]


def _nudges(rng: random.Random, schedule: Schedule) -> list[Fault]:
    return [
        Fault("nudge", at, at, {"member": rng.choice(_everyone(schedule)), "pick": rng.randrange(1 << 30)})
        for at, _ in _times(rng, schedule, 12, SECOND)
    ]


_CLASSES = {
    "loss": _loss,
    "delay": _delay,
    "reorder": _reorder,
    "repeat": _repeat,
    "narrow": _narrow,
    "partition": _partitions,
    "crash": _crashes,
    "rolling": _rolling,
    "pause": _pauses,
    "disk": _slow_disks,
    "lure": _lures,
    "member": _churn,
    "transfer": _transfers,
    "nudge": _nudges,
}
