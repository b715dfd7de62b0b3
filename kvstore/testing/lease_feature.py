"""LeaseFeature and locks under faults.

A session grants a lease, attaches a key to it, keeps it alive for a while, and then lets it expire or revokes
it. Some queue for a lock meanwhile. The oracle keeps for each lease the time until which its client may count
on it: when the last acknowledged keep-alive was sent, plus the TTL. Before that, no member may have applied
the expiry (unless the client revoked the lease), and two holders of the lock may never both count on their
leases. When a lock is granted, its key must exist. After the faults, every lease without keep-alives must
expire.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvstore.engine import DeleteRange, Put, Range
from kvstore.errors import KVError, LeaseNotFound
from kvstore.lease.lessor import TimeLeft
from kvstore.lease.lock_queue import Held, LockQueues

if TYPE_CHECKING:
    from kvstore.server.local_member import LocalMember
    from kvstore.testing.nodes import Simulation
    from kvstore.testing.simulation import SimulatedNode

SESSIONS = 4
"""LeaseFeature at a time."""

TTLS_SECONDS = (2, 2, 3)

KEEP_ALIVE_S = (0.2, 0.9)
"""Between two keep-alives."""

CHECK_S = 0.02
"""Between two checks of which leases each member still has."""

ANSWER_S = 9.0
"""After this no answer comes any more: the process that was called has ended."""

HOLD_S = (0.3, 3.5)
"""The longest that a lock is held: usually, and by some, who outlast the lease of an idle waiter."""

EXPIRED_WITHIN_S = 15.0
"""After healing, every lease without keep-alives has expired by then: the longest TTL, and an election or
two."""

TOO_EARLY = "a lease lives as long as its client may count on it"
TWO_HOLDERS = "a lock has one holder"
DEAD_HOLDER = "a granted lock has its key"
NEVER_EXPIRES = "a lease without keep-alives expires, with its keys"

KEYS, KEYS_END = b"sim-", b"sim."
"""All keys of these clients."""
LOCK = b"sim-lock"
PREFIX = b"sim-lease/"


class Session:
    def __init__(self, number: int, home: int) -> None:
        self.number = number
        self.home = home
        """The member its client prefers."""
        self.lease = 0
        self.granted_at = 0
        self.ttl_seconds = 0
        self.safe_until_s = 0.0
        """Until then the client counts on it."""
        self.abandoned = False
        """The client revoked it, or can no longer know whether it lives."""


class LeaseFeature:
    """Implements `Feature`."""

    def __init__(self, cluster: Simulation, rng: random.Random) -> None:
        self._cluster = cluster
        self._judge = cluster.judge
        self._rng = rng
        self._loop = cluster.loop
        self._members: dict[int, LocalMember] = {}
        self._queues: dict[int, LockQueues] = {}
        self._sessions: dict[int, Session] = {}
        """By number: those whose client still counts on them."""
        self._holder: Session | None = None
        """The last session to be granted the lock, until it begins to release it."""
        self._numbers = 0
        self._stopping = False
        self._outcomes: Counter[str] = Counter()
        self._revisions: set[int] = set()
        """At which a key of these clients was written or deleted, as any member reported."""

    def started(self, member_id: int, node: SimulatedNode) -> None:
        self._members[member_id] = self._cluster.services[member_id].member
        self._queues[member_id] = self._members[member_id].lock_queues
        self._members[member_id].watches.subscribe(
            KEYS, KEYS_END, 1, lambda revision, _: self._revisions.add(revision), lambda _: None
        )

    def ended(self, member_id: int) -> None:
        self._members.pop(member_id, None)
        self._queues.pop(member_id, None)

    async def live(self) -> None:
        checking = self._loop.create_task(self._check_leases())
        try:
            await asyncio.gather(*(self._run_client() for _ in range(SESSIONS)))
        finally:
            checking.cancel()
            await asyncio.wait([checking])

    def stop(self) -> None:
        self._stopping = True

    async def check_liveness(self, core: Sequence[int]) -> None:
        """Every lease must expire on every healed member: no client keeps one alive any more."""
        end_s = self._loop.time() + EXPIRED_WITHIN_S
        while any(self._remaining(member_id) for member_id in core):
            if self._loop.time() > end_s:
                left = {member_id: self._remaining(member_id) for member_id in core}
                self._judge.violate(NEVER_EXPIRES, f"{left}")
                return
            await asyncio.sleep(0.1)

    def judge(self) -> None:
        """Violations are reported as they happen."""

    def revisions(self) -> Iterable[int]:
        return self._revisions

    def operations(self) -> Mapping[str, int]:
        return self._outcomes

    # ---- clients

    async def _run_client(self) -> None:
        while not self._stopping:
            session = await self._open()
            if session is None:
                await asyncio.sleep(0.1)
            else:
                await self._use(session)

    async def _use(self, session: Session) -> None:
        waiting = None
        asleep = self._rng.random() < 0.3
        if asleep or self._rng.random() < 0.5:
            waiting = self._loop.create_task(self._contend(session, asleep=asleep))
        for _ in range(0 if asleep else self._rng.randrange(12)):
            await asyncio.sleep(self._rng.uniform(*KEEP_ALIVE_S))
            if self._stopping or session.abandoned or not await self._keep_alive(session):
                break
        if waiting is not None:
            await waiting
        if self._rng.random() < 0.3 and not session.abandoned:
            session.abandoned = True
            await self._call(session, "revoke", lambda m, s: m.lessor.revoke(session.lease, s))
        # Otherwise no keep-alive follows, and `_check_leases` checks that it lives until its time is up.
        await asyncio.sleep(max(0.0, session.safe_until_s - self._loop.time()))
        session.abandoned = True
        del self._sessions[session.number]

    async def _open(self) -> Session | None:
        self._numbers += 1
        session = Session(self._numbers, self._rng.choice(list(self._cluster.members)))
        ttl_seconds = self._rng.choice(TTLS_SECONDS)
        sent_s = self._loop.time()
        granted = await self._call(session, "grant", lambda m, s: m.lessor.grant(0, ttl_seconds, s))
        if granted is None:
            return None
        session.lease, session.ttl_seconds = granted.id, granted.ttl_seconds
        session.safe_until_s = sent_s + granted.ttl_seconds
        found = [
            lease.granted_at
            for member in self._members.values()
            if (lease := member.engine.leases.find(granted.id)) is not None
        ]
        if not found:
            return None  # expired, or the only member that has it is down: the time of its grant is unknown
        session.granted_at = found[0]
        self._sessions[session.number] = session
        put = Put(PREFIX + b"%d" % session.number, lease=session.lease)
        await self._call(session, "put", lambda m, s: m.propose(put, s))
        return session

    async def _keep_alive(self, session: Session) -> bool:
        sent_s = self._loop.time()
        left = await self._call(session, "keep_alive", lambda m, s: m.lessor.keep_alive(session.lease, s))
        if left is None:
            return True
        assert isinstance(left, TimeLeft)
        if not left.granted_seconds:
            session.abandoned = True
            if sent_s < session.safe_until_s and self._loop.time() < session.safe_until_s:
                self._judge.violate(TOO_EARLY, f"lease {session.lease:x} is unknown to the leader")
            return False
        session.safe_until_s = max(session.safe_until_s, sent_s + left.granted_seconds)
        return True

    async def _contend(self, session: Session, *, asleep: bool) -> None:
        """Queue for the lock, perhaps give up, hold it a while, release it. With `asleep`, give up late."""
        member_id = self._choose_member(session)
        if member_id is None:
            return
        answered: asyncio.Future[Held | KVError] = self._loop.create_future()
        member = self._members[member_id]

        def on_outcome(outcome: Held | KVError) -> None:
            if not answered.done():
                answered.set_result(outcome)
                self._granted(session, member, outcome)

        waiter = self._queues[member_id].enter(LOCK, session.lease, on_outcome)
        patience_s = ANSWER_S if asleep else self._rng.choice((1.0, 4.0))
        try:
            outcome = await asyncio.wait_for(asyncio.shield(answered), patience_s)
        except TimeoutError:
            if self._members.get(member_id) is member:
                waiter.cancel()
            answered.cancel()
            self._outcomes["lock gave up"] += 1
            return
        self._outcomes["lock ok" if isinstance(outcome, Held) else "lock refused"] += 1
        if isinstance(outcome, Held):
            await asyncio.sleep(self._rng.uniform(0, self._rng.choice(HOLD_S)))
            if self._holder is session:
                self._holder = None
            release = DeleteRange(outcome.key)
            await self._call(session, "unlock", lambda m, s: m.propose(release, s))

    def _granted(self, session: Session, member: LocalMember, outcome: Held | KVError) -> None:
        """Check a grant at the moment at which the member reports it."""
        if isinstance(outcome, KVError):
            return
        found = member.engine.range(Range(outcome.key)).kvs
        if not found or found[0].create_revision != outcome.create_revision:
            self._judge.violate(DEAD_HOLDER, f"{outcome.key!r} of lease {session.lease:x}")
        now_s, other = self._loop.time(), self._holder
        both_sure = other is not None and min(other.safe_until_s, session.safe_until_s) > now_s
        if other is not None and other is not session and both_sure and not other.abandoned:
            self._judge.violate(TWO_HOLDERS, f"leases {other.lease:x} and {session.lease:x}")
        self._holder = session

    # ---- calls

    def _choose_member(self, session: Session) -> int | None:
        """The member to call: mostly the same one, so that a partitioned one is called too."""
        usable = [member_id for member_id in self._cluster.usable() if member_id in self._members]
        if not usable:
            return None
        if session.home not in usable or self._rng.random() < 0.2:
            return self._rng.choice(usable)
        return session.home

    async def _call(
        self, session: Session, kind: str, begin: Callable[[LocalMember, Callable[[Any], None]], None]
    ) -> Any:
        """What a member answered; None for an error, and for no answer at all."""
        member_id = self._choose_member(session)
        if member_id is None:
            return None
        answered: asyncio.Future[Any] = self._loop.create_future()

        def on_outcome(outcome: Any) -> None:
            if not answered.done():
                answered.set_result(outcome)

        begin(self._members[member_id], on_outcome)
        try:
            outcome = await asyncio.wait_for(answered, ANSWER_S)
        except TimeoutError:
            self._outcomes[f"{kind} lost"] += 1
            return None
        if isinstance(outcome, KVError):
            self._outcomes[f"{kind} {'refused' if isinstance(outcome, LeaseNotFound) else 'failed'}"] += 1
            return None
        self._outcomes[f"{kind} ok"] += 1
        return outcome

    # ---- checks

    async def _check_leases(self) -> None:
        """No member may have applied the expiry of a lease on which its client counts."""
        while True:
            await asyncio.sleep(CHECK_S)
            now_s = self._loop.time()
            for session in self._sessions.values():
                if session.abandoned or session.safe_until_s <= now_s:
                    continue
                for member_id, member in self._members.items():
                    node = self._cluster.members[member_id].node
                    if node is None or node.failed or node.applied < session.granted_at:
                        continue
                    if session.lease not in member.engine.leases:
                        session.abandoned = True
                        left_s = session.safe_until_s - now_s
                        self._judge.violate(
                            TOO_EARLY, f"member {member_id} expired {session.lease:x} {left_s:.2f} s early"
                        )
                        break

    def _remaining(self, member_id: int) -> list[str]:
        """LeaseFeature and keys of leases that a member still has."""
        member = self._members.get(member_id)
        if member is None:
            return []
        keys = member.engine.range(Range(PREFIX, PREFIX[:-1] + b"0", keys_only=True)).kvs
        return [f"{lease:x}" for lease in member.engine.leases.ids()] + [f"{pair.key!r}" for pair in keys]
