"""Locks: tokens grow, ended leases are granted nothing, and with fencing no update is lost.

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
revoked while it waited, and at which revision; a revocation is ok only of a lease that lived. Keep-alives are
not part of the history, so a lease ends at the earliest a TTL after its grant was sent, or when it is
revoked. A lease holds a name once at a time. An update reads version `base` of the guarded resource, whose
first is 0, and replaces version `before`: where they differ, an update is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from kvstore.verify.effect_times import NEVER_NS, Moment, contradictions, moments
from kvstore.verify.fence_checker import fence_findings
from kvstore.verify.operation_history import Operation, Outcome, Verdict, VerdictKind
from kvstore.verify.set_checker import conclude

NS = 1_000_000_000


@dataclass(slots=True, frozen=True, kw_only=True)
class Holding:
    """One lock, believed to be held from one moment of the clock to another."""

    name: str
    token: int
    begin_ns: int
    end_ns: int
    operation: Operation


def check_locks(operations: Sequence[Operation], *, fenced: bool) -> Verdict:
    """Judge a history of locks. Without fencing, lost updates are counted and no violation.

    Raises ValueError for a history without times.
    """
    verdict = conclude(operations, _findings(operations, fenced))
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
    believed = sorted(_holdings(operations), key=lambda h: (h.name, h.begin_ns))
    return list(_overlapping(believed))


def _done(operations: Sequence[Operation], f: str) -> list[Operation]:
    return [op for op in operations if op.f == f and op.outcome is Outcome.OK]


def _findings(operations: Sequence[Operation], fenced: bool) -> Iterator[str]:
    store = [operation for operation in operations if operation.f != "update"]
    known = moments([*store, *_waiter_revocations(store)], _revision)
    yield from contradictions(known)
    yield from _before_their_time(known)
    leases: dict[int, _Lease] = {}
    names: dict[str, list[Moment]] = {}
    released: dict[tuple[str, int], list[Moment]] = {}
    for moment in known:
        operation = moment.operation
        if operation.f == "release":
            asked = operation.invoked
            released.setdefault((asked["name"], asked["token"]), []).append(moment)
        elif operation.f == "revoke":
            leases.setdefault(operation.invoked, _Lease()).revokes.append(moment)
        elif moment.done:
            lease = leases.setdefault(operation.completed["lease"], _Lease())
            if operation.f == "grant":
                lease.grants.append(moment)
            else:
                lease.acquired.append(moment)
                names.setdefault(operation.completed["name"], []).append(moment)
    for lease in leases.values():
        yield from lease.findings()
    for taken in names.values():
        yield from _check_order(taken, leases, released)
    tokens = {(name, moment.revision) for name, taken in names.items() for moment in taken}
    for lock, releases in released.items():
        if lock not in tokens and any(release.done for release in releases):
            yield f"released, but never granted: {releases[0].operation.describe()}"
    if fenced:
        yield from fence_findings(operations, [moment for taken in names.values() for moment in taken])


def _waiter_revocations(operations: Sequence[Operation]) -> Iterator[Operation]:
    """Revocations of waiters, as operations of their own."""
    for operation in _done(operations, "acquire"):
        reply = operation.completed
        if reply["revoked"] is not None:
            done = {"lease": reply["lease"], "revision": reply["revoked"]}
            yield replace(operation, f="revoke", invoked=reply["lease"], completed=done)


def _revision(operation: Operation) -> tuple[int, bool] | None:
    """None of these made its revision for certain: a waiter is granted at that of its predecessor's end."""
    if operation.f == "grant":
        return None
    return operation.completed["token" if operation.f == "acquire" else "revision"], False


def _before_their_time(known: Sequence[Moment]) -> Iterator[str]:
    """An acquisition writes a key after its call: its token is higher than all revisions seen before the
    call."""
    shown: dict[int, Moment] = {}
    for moment in known:
        if moment.revision is not None:
            first = shown.setdefault(moment.revision, moment)
            if (moment.operation.returned_ns or 0) < (first.operation.returned_ns or 0):
                shown[moment.revision] = moment
    for moment in known:
        if moment.operation.f == "acquire" and moment.revision is not None:
            if moment.revision < 1:
                yield f"no revision: {moment.operation.describe()}"
            first = shown[moment.revision]
            if (first.operation.returned_ns or 0) < (moment.operation.called_ns or 0):
                yield f"{first.operation.describe()} had shown the revision of {moment.operation.describe()}"


@dataclass(slots=True)
class _Lease:
    """One lease: what was granted to it, and when it can have ended."""

    grants: list[Moment] = field(default_factory=list)
    revokes: list[Moment] = field(default_factory=list)
    """Of unknown outcome too."""
    acquired: list[Moment] = field(default_factory=list)

    def revoked(self) -> Moment | None:
        return next((moment for moment in self.revokes if moment.done), None)

    def findings(self) -> Iterator[str]:
        done = [moment for moment in self.revokes if moment.done]
        for which, again in (("granted", self.grants), ("revoked", done)):
            if len(again) > 1:
                yield f"a lease {which} a second time: {again[1].operation.describe()}"
        for moment in (*self.acquired, *done):
            if self.grants and moment.latest_ns < self.grants[0].earliest_ns:
                yield f"its lease was yet to be granted: {moment.operation.describe()}"
        for end in done[:1]:
            for moment in self.acquired:
                late = moment.earliest_ns > end.latest_ns or (moment.revision or 0) >= (end.revision or 0)
                if late:
                    yield (
                        f"granted at a revision at which its lease had been revoked: "
                        f"{moment.operation.describe()}, {end.operation.describe()}"
                    )

    def ends_ns(self, token: float) -> float:
        """When it can have ended at the earliest, for another to be granted what it held at `token`."""
        if any((moment.revision or 0) >= token for moment in self.acquired):
            return NEVER_NS  # it was granted something at or after that
        revoked = self.revoked()
        if revoked is not None:
            return revoked.earliest_ns if (revoked.revision or 0) <= token else NEVER_NS
        alive: float = max((moment.earliest_ns for moment in self.acquired), default=0)
        sure: float = 0
        for moment in self.grants:
            sure = (moment.operation.called_ns or 0) + int(moment.operation.completed["ttl"] * NS)
        return max(alive, min([sure, *(moment.earliest_ns for moment in self.revokes)]))


def _check_order(
    taken: Sequence[Moment], leases: dict[int, _Lease], released: dict[tuple[str, int], list[Moment]]
) -> Iterator[str]:
    """The locks of one name, in the order of their tokens: each after the end of the one before."""
    previous: Moment | None = None
    granted: float = 0
    for moment in sorted(taken, key=lambda one: (one.revision or 0, one.earliest_ns)):
        operation = moment.operation
        if previous is not None:
            before = previous.operation
            if previous.revision == moment.revision:
                yield f"one token twice: {before.describe()} and {operation.describe()}"
            elif (operation.returned_ns or 0) < (before.called_ns or 0):
                yield f"a token went back: {operation.describe()}, then {before.describe()}"
            token = moment.revision or 0
            releases = released.get((before.completed["name"], before.completed["token"]), ())
            ends = [leases[before.completed["lease"]].ends_ns(token)]
            ends += [one.earliest_ns for one in releases if not one.done or (one.revision or 0) <= token]
            granted = max(granted, min(ends))
            if granted > moment.latest_ns:
                yield f"held by two at once: {before.describe()} and {operation.describe()}"
                granted = 0
        granted = max(granted, moment.earliest_ns)
        for release in released.get((operation.completed["name"], operation.completed["token"]), ()):
            early = release.done and (release.revision or 0) <= (moment.revision or 0)
            if early or release.latest_ns < moment.earliest_ns:
                yield f"released before it was granted: {release.operation.describe()}"
        previous = moment


def _holdings(operations: Sequence[Operation]) -> Iterator[Holding]:
    """Each lock from its answer to the attempt to give it back, as its client believes."""
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
