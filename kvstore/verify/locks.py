"""Locks: tokens grow, the dead are granted nothing, and with fencing no update is lost.

=========  ==========================  ====================================================================
f          invoked                     completed
=========  ==========================  ====================================================================
`grant`    ttl in seconds              {"lease": l, "ttl": t}
`acquire`  {"name", "lease", ..}       {"name", "lease", "token": r, "revoked": revision or nil}
`update`   {"name", "token" or nil}    {"name", "token", "base": v, "before": v, "version": v, "accepted": b}
`release`  {"name", "token"}           {"name", "token", "revision": r}
`revoke`   lease                       {"lease": l, "revision": r}
=========  ==========================  ====================================================================

The token is the store's revision when the lock was acquired. `revoked` says that the waiter's lease was
revoked while it waited, and at which revision. An update reads version `base` of the guarded resource and
replaces version `before`: where they differ, somebody's update is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvstore.verify.history import Operation, Outcome, Verdict, VerdictKind
from kvstore.verify.sets import conclude


@dataclass(slots=True, frozen=True, kw_only=True)
class Holding:
    """One lock, held for sure from one moment of the clock to another."""

    name: str
    token: int
    begin_ns: int
    end_ns: int
    operation: Operation


def check_locks(operations: Sequence[Operation], *, fenced: bool) -> Verdict:
    """Judge a history of locks. Without fencing, lost updates are counted and no violation."""
    verdict = conclude(len(operations), _findings(operations, fenced))
    updates, lost = count_updates(operations)
    note = f"{lost} of {updates} accepted updates lost an earlier one"
    if verdict.kind is VerdictKind.VALID:
        return Verdict(verdict.kind, verdict.operations, (note,))
    return verdict


def count_updates(operations: Sequence[Operation]) -> tuple[int, int]:
    """How many updates the resource accepted, and how many of them lost an earlier one."""
    accepted = [op.completed for op in _done(operations, "update") if op.completed["accepted"]]
    return len(accepted), sum(update["base"] != update["before"] for update in accepted)


def overlaps(operations: Sequence[Operation]) -> list[tuple[Holding, Holding]]:
    """Pairs of locks of one name that both clients had reason to believe in at the same time."""
    believed = sorted(_holdings(operations, certain=False), key=lambda h: (h.name, h.begin_ns))
    return list(_overlapping(believed))


def _done(operations: Sequence[Operation], f: str) -> list[Operation]:
    return [op for op in operations if op.f == f and op.outcome is Outcome.OK]


def _findings(operations: Sequence[Operation], fenced: bool) -> Iterator[str]:
    acquired = _done(operations, "acquire")
    yield from _tokens(acquired)
    for operation in acquired:
        revoked = operation.completed["revoked"]
        if revoked is not None and operation.completed["token"] >= revoked:
            yield f"granted at a revision at which its lease had been revoked: {operation.describe()}"
    certain = sorted(_holdings(operations, certain=True), key=lambda h: (h.name, h.begin_ns))
    for one, other in _overlapping(certain):
        yield f"held by two at once: {one.operation.describe()} and {other.operation.describe()}"
    if fenced:
        yield from _updates(operations)


def _tokens(acquired: Sequence[Operation]) -> Iterator[str]:
    """Tokens of a name are never given twice, and grow with time."""
    by_name: dict[str, list[Operation]] = {}
    for operation in acquired:
        by_name.setdefault(operation.completed["name"], []).append(operation)
    for mine in by_name.values():
        seen: dict[int, Operation] = {}
        for operation in mine:
            rival = seen.setdefault(operation.completed["token"], operation)
            if rival is not operation:
                yield f"one token twice: {rival.describe()} and {operation.describe()}"
        ended = sorted(mine, key=lambda op: op.ret or 0)
        highest: Operation | None = None
        place = 0
        for operation in sorted(mine, key=lambda op: op.call):
            while place < len(ended) and (ended[place].ret or 0) < operation.call:
                rival = ended[place]
                if highest is None or rival.completed["token"] > highest.completed["token"]:
                    highest = rival
                place += 1
            if highest is not None and highest.completed["token"] >= operation.completed["token"]:
                yield f"a token went back: {highest.describe()}, then {operation.describe()}"


def _holdings(operations: Sequence[Operation], *, certain: bool) -> Iterator[Holding]:
    """When each lock was held. `certain` ends it when its lease, if never renewed, might have ended."""
    granted = {op.completed["lease"]: op for op in _done(operations, "grant")}
    ends: dict[tuple[str, int], int] = {}
    for operation in operations:
        if operation.f == "release" and operation.called_ns is not None:
            ends[operation.invoked["name"], operation.invoked["token"]] = operation.called_ns
    revokes = {op.invoked: op.called_ns for op in operations if op.f == "revoke"}
    for operation in _done(operations, "acquire"):
        reply = operation.completed
        if operation.returned_ns is None or reply["revoked"] is not None:
            continue
        end = ends.get((reply["name"], reply["token"])) or revokes.get(reply["lease"])
        grant = granted.get(reply["lease"])
        if certain:
            if grant is None or grant.called_ns is None:
                continue
            sure = grant.called_ns + int(grant.completed["ttl"] * 1e9)
            end = sure if end is None else min(end, sure)
        if end is not None and end > operation.returned_ns:
            yield Holding(
                name=reply["name"],
                token=reply["token"],
                begin_ns=operation.returned_ns,
                end_ns=end,
                operation=operation,
            )


def _overlapping(holdings: Sequence[Holding]) -> Iterator[tuple[Holding, Holding]]:
    """Neighbours in time that overlap; `holdings` by name and beginning."""
    latest: Holding | None = None
    for holding in holdings:
        if latest is not None and latest.name == holding.name and latest.end_ns > holding.begin_ns:
            yield latest, holding
        if latest is None or latest.name != holding.name or holding.end_ns > latest.end_ns:
            latest = holding


def _updates(operations: Sequence[Operation]) -> Iterator[str]:
    """What the resource accepted, in its own order: tokens never go back, nothing is lost."""
    accepted = [op for op in _done(operations, "update") if op.completed["accepted"]]
    accepted.sort(key=lambda op: (op.completed["name"], op.completed["version"]))
    previous: Operation | None = None
    for operation in accepted:
        update = operation.completed
        if update["base"] != update["before"]:
            yield f"an update is lost: {operation.describe()}"
        same_name = previous is not None and previous.completed["name"] == update["name"]
        if same_name and previous is not None and previous.completed["token"] > update["token"]:
            yield f"accepted after a higher token: {operation.describe()}"
        previous = operation
