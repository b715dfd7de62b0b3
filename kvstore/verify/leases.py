"""Leases: alive while renewed, gone afterwards, and gone for good.

=========  =========================  =====================================================
f          invoked                    completed
=========  =========================  =====================================================
`grant`    ttl in seconds             {"lease": l, "ttl": t}
`attach`   {"lease", "key"}           {"lease", "key", "revision"}; one key, attached once
`renew`    {"lease"}                  {"lease", "ttl": t}, 0 when the lease is gone
`observe`  {"lease", "key"}           {"lease", "key", "revision", "present": b}
`revoke`   lease                      {"lease", "revision"}
=========  =========================  =====================================================

The promise is counted from the moment a client *sends* its grant or renewal: until that plus the TTL,
the key is there. How soon after that it goes depends on who leads, so only the end of the test judges it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from kvstore.verify.history import Operation, Outcome, Verdict
from kvstore.verify.sets import conclude


def check_leases(operations: Sequence[Operation], left: Collection[str] = ()) -> Verdict:
    """Judge a history of leases. `left`: keys that are still there when all leases must long be gone."""
    return conclude(len(operations), _findings(operations, left))


def _findings(operations: Sequence[Operation], left: Collection[str]) -> Iterator[str]:
    lives: dict[int, list[Operation]] = {}
    for operation in operations:
        known = operation.completed if operation.outcome is Outcome.OK else operation.invoked
        if isinstance(known, dict):
            lives.setdefault(known["lease"], []).append(operation)
        elif operation.f == "revoke":
            lives.setdefault(known, []).append(operation)
    for life in lives.values():
        yield from _life(life)
    for key in left:
        yield f"{key!r} is still there long after its lease ended"


def _life(operations: Sequence[Operation]) -> Iterator[str]:
    """One lease, all its operations in the order of their calls."""
    attached = next((op for op in operations if op.f == "attach" and op.outcome is Outcome.OK), None)
    if attached is None or attached.ret is None:
        return
    granted = next((op for op in operations if op.f == "grant"), None)
    sure_ns = _sure_until(operations)
    gone: Operation | None = None
    """The observation or revocation, ended first, after which the key must be gone."""
    for operation in sorted((op for op in operations if op.ret is not None), key=lambda op: op.ret or 0):
        ended = operation.f == "revoke" or (
            operation.f == "observe" and not operation.completed["present"] and operation.call > attached.ret
            if operation.outcome is Outcome.OK
            else False
        )
        if operation.outcome is Outcome.OK and ended and gone is None:
            gone = operation
    revoke = next((op for op in operations if op.f == "revoke"), None)
    for operation in operations:
        if operation.outcome is not Outcome.OK:
            continue
        after_gone = gone is not None and gone.ret is not None and gone.ret < operation.call
        if operation.f == "observe":
            present = operation.completed["present"]
            if present and after_gone and gone is not None:
                yield f"back after {gone.describe()}: {operation.describe()}"
            before_revoke = revoke is None or (operation.ret or 0) < revoke.call
            early = operation.returned_ns is not None and operation.returned_ns < sure_ns
            if not present and operation.call > attached.ret and before_revoke and early:
                seconds = (sure_ns - (operation.returned_ns or 0)) / 1e9
                yield f"gone {seconds:.3f} s early: {operation.describe()}"
        elif operation.f == "renew":
            if operation.completed["ttl"] > 0 and after_gone and gone is not None:
                yield f"renewed after {gone.describe()}: {operation.describe()}"
            if granted is not None and operation.completed["ttl"] > granted.completed["ttl"]:
                yield f"a longer TTL than granted: {operation.describe()}"


def _sure_until(operations: Sequence[Operation]) -> int:
    """Until when, on the clients' clock, the lease is alive for sure, unless revoked."""
    ttl = next((op.completed["ttl"] for op in operations if op.f == "grant"), 0)
    until = 0
    for operation in operations:
        if operation.outcome is not Outcome.OK or operation.called_ns is None:
            continue
        if operation.f == "grant" or (operation.f == "renew" and operation.completed["ttl"] > 0):
            until = max(until, operation.called_ns + int(ttl * 1e9))
    return until
