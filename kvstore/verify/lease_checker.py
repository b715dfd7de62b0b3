"""Leases: alive while kept alive, then expired for good.

============  =========================  =====================================================
f             invoked                    completed
============  =========================  =====================================================
`grant`       ttl in seconds             {"lease": l, "ttl": t}
`attach`      {"lease", "key"}           {"lease", "key", "revision"}; one key, always the same
`keep_alive`  {"lease"}                  {"lease", "ttl": t}, 0 when the lease is gone
`observe`     {"lease", "key"}           {"lease", "key", "revision", "present": b}
`revoke`      lease                      {"lease", "revision"}
============  =========================  =====================================================

The guarantee counts from the moment a client *sends* its grant or keep-alive: until then plus the returned
TTL, the key exists. How soon after that it expires depends on the leader, so only the end of the test checks
it. A lease that no grant of the history returned is assumed to be older than the history.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from kvstore.verify.effect_times import NEVER_NS, Moment, contradictions, moments
from kvstore.verify.operation_history import Operation, Verdict
from kvstore.verify.set_checker import conclude

NS = 1_000_000_000


def check_leases(operations: Sequence[Operation], left: Collection[str] = ()) -> Verdict:
    """Judge a history of leases. `left`: keys that still exist when all leases must have expired.

    Raises ValueError for a history without times.
    """
    return conclude(operations, _findings(operations, left))


def _findings(operations: Sequence[Operation], left: Collection[str]) -> Iterator[str]:
    known = moments(operations, _revision)
    yield from contradictions(known)
    lives: dict[int, _Life] = {}
    for moment in known:
        operation = moment.operation
        value = operation.completed if moment.done else operation.invoked
        lease = value["lease"] if isinstance(value, dict) else value if operation.f == "revoke" else None
        if lease is not None:
            lives.setdefault(lease, _Life()).take(moment)
    for life in lives.values():
        yield from life.findings()
    for key in left:
        yield f"{key!r} still exists long after its lease expired"


def _revision(operation: Operation) -> tuple[int, bool] | None:
    if operation.f in ("attach", "observe", "revoke"):
        return operation.completed["revision"], operation.f == "attach"
    return None


class _Life:
    """One lease and its observations: is there a moment at which it can have ended?"""

    def __init__(self) -> None:
        self.grants: list[Moment] = []
        self.attaches: list[Moment] = []
        """Of unknown outcome too."""
        self.revokes: list[Moment] = []
        """Of unknown outcome too."""
        self.alive: list[Moment] = []
        """Replies that only a living lease can give."""
        self.present: list[Moment] = []
        self.absent: list[Moment] = []
        self.refused: list[Moment] = []
        """Keep-alives that found no lease."""

    def take(self, moment: Moment) -> None:
        f, completed = moment.operation.f, moment.operation.completed
        if f == "attach":
            self.attaches.append(moment)
        elif f == "revoke":
            self.revokes.append(moment)
        if not moment.done:
            return
        if f == "grant":
            self.grants.append(moment)
        elif f == "observe":
            (self.present if completed["present"] else self.absent).append(moment)
        elif f == "keep_alive" and not completed["ttl"]:
            self.refused.append(moment)
        if f in ("attach", "revoke") or moment in self.present or (f == "keep_alive" and completed["ttl"]):
            self.alive.append(moment)

    def findings(self) -> Iterator[str]:
        revoked = [moment for moment in self.revokes if moment.done]
        for which, again in (("granted", self.grants), ("revoked", revoked)):
            if len(again) > 1:
                yield f"{which} a second time: {again[1].operation.describe()}"
        yield from self._beginning()
        yield from self._revisions(revoked)
        attached = [moment for moment in self.attaches if moment.done]
        attached_ns = min((moment.latest_ns for moment in (*attached, *self.present)), default=NEVER_NS)
        granted_ns = min((moment.latest_ns for moment in (*self.grants, *self.alive)), default=NEVER_NS)
        put_at = min((moment.revision or 0 for moment in (*attached, *self.present)), default=NEVER_NS)
        dead = [m for m in self.absent if m.earliest_ns >= attached_ns or (m.revision or 0) >= put_at]
        dead += [m for m in self.refused if not self.grants or m.earliest_ns >= granted_ns]
        dead += revoked
        dead.sort(key=lambda moment: moment.latest_ns)
        if dead:
            yield from self._too_soon(dead[0], revoked)

    def _beginning(self) -> Iterator[str]:
        """Nothing lives before its grant, and no key is there before it was put."""
        granted_ns = max((moment.earliest_ns for moment in self.grants), default=0)
        put_ns = min((moment.earliest_ns for moment in self.attaches), default=NEVER_NS)
        for moment in self.alive:
            if moment.latest_ns < granted_ns:
                yield f"alive before it was granted: {moment.operation.describe()}"
        for moment in self.present:
            if moment.latest_ns < put_ns:
                yield f"there before it was put: {moment.operation.describe()}"
        ttl = max((moment.operation.completed["ttl"] for moment in self.grants), default=None)
        for moment in self.alive:
            if (
                moment.operation.f == "keep_alive"
                and ttl is not None
                and moment.operation.completed["ttl"] > ttl
            ):
                yield f"a longer TTL than granted: {moment.operation.describe()}"

    def _revisions(self, revoked: Sequence[Moment]) -> Iterator[str]:
        """From the revision at which it was put to that at which it went, the key is there; then no more."""
        if not self.attaches:
            return
        puts = [moment.revision or 0 for moment in self.attaches if moment.done]
        certain = len(puts) == len(self.attaches)
        first, last = min(puts, default=0), max(puts, default=0)
        shown = [(moment.revision or 0, moment) for moment in self.present]
        for revision, moment in shown:
            if certain and revision < first:
                yield f"there before revision {first}: {moment.operation.describe()}"
        alive_through = max([last, *(revision for revision, _ in shown)])
        since = min([*puts, *(revision for revision, _ in shown)], default=NEVER_NS)
        gone = [(m.revision or 0, m) for m in self.absent if (m.revision or 0) >= since]
        gone += [(m.revision or 0, m) for m in revoked if puts or shown]
        for revision, moment in gone:
            if revision <= alive_through:
                yield f"back after it was gone at revision {revision}: {moment.operation.describe()}"
        for moment in revoked:
            for revision, seen in gone:
                if revision < (moment.revision or 0):
                    yield f"gone before {moment.operation.describe()}: {seen.operation.describe()}"

    def _too_soon(self, first: Moment, revoked: Sequence[Moment]) -> Iterator[str]:
        """Signs of life after `first` found it gone, or the guarantee that `first` violates."""
        gone = first.operation.describe()
        for moment in self.alive:
            if moment.earliest_ns > first.latest_ns:
                word = "kept alive after" if moment.operation.f == "keep_alive" else "back after"
                yield f"{word} {gone}: {moment.operation.describe()}"
        if (
            self.present
            and (put_ns := min(m.earliest_ns for m in self.attaches or self.present)) > first.latest_ns
        ):
            yield f"put at {put_ns} ns, after {gone}"
        if revoked:
            return
        sure_ns = self._sure_until()
        end_ns = min([sure_ns, *(moment.earliest_ns for moment in self.revokes)])
        if first.latest_ns < end_ns:
            yield f"gone {(end_ns - first.latest_ns) / NS:.3f} s early: {gone}"

    def _sure_until(self) -> float:
        """Until when, on the clients' clock, the lease is alive for sure, unless revoked."""
        until: float = 0
        for moment in (*self.grants, *self.alive):
            if moment.operation.f in ("grant", "keep_alive"):
                called_ns = moment.operation.called_ns or 0
                until = max(until, called_ns + int(moment.operation.completed["ttl"] * NS))
        return until
