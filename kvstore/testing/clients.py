"""Clients of a simulated cluster, and the history of their requests and replies.

Every written value is unique, so every command is, and a reply names the write it saw. A client calls one
member at a time and never retries a command: without a reply its outcome stays unknown.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from kvstore.engine import (
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    DeleteResult,
    Engine,
    Put,
    PutResult,
    Range,
    Txn,
    TxnResult,
    encode,
)
from kvstore.testing.probes import NodeProbes
from kvstore.testing.simulation_judge import Judge
from kvstore.verify import Event
from raft.node import NodeError, NotApplied

RETRY_S = 0.02
"""Wait of a client while no member is usable."""


class Members(Protocol):
    def usable(self) -> list[int]:
        """Members that run and belong to the cluster."""

    def paused(self, member_id: int) -> bool:
        """Whether a member's process is paused: it accepts requests and answers later."""

    def term(self, member_id: int) -> int:
        """The term of a running member; 0 while its process is down."""

    def engine(self, member_id: int) -> Engine | None:
        """The state a running member serves; None while its process is down."""

    def propose(self, member_id: int, command: bytes) -> asyncio.Future[object]: ...

    def read_barrier(self, member_id: int) -> asyncio.Future[None]: ...


class Clients:
    """All clients of one run. Times are the positions of events, which is all a checker needs."""

    def __init__(
        self,
        members: Members,
        judge: Judge,
        probes: NodeProbes,
        rng: random.Random,
        *,
        keys: int,
        padding: int = 0,
        operations_max: int = 1 << 30,
        roaming: bool = True,
    ) -> None:
        """Values are padded by up to `padding` bytes, so that records span sectors of the disk. All
        clients together stop after `operations_max` operations."""
        self._operations_max = operations_max
        self._roaming = roaming
        self._padding = padding
        self._members = members
        self._clock = asyncio.get_running_loop().time
        self._judge = judge
        self._probes = probes
        self._newest = 0
        """The highest revision that any reply showed."""
        self._rng = rng
        self.keys = [f"k{number}" for number in range(keys)]
        self.events: list[Event] = []
        self.outcomes: Counter[str] = Counter()
        """Operations by kind and how they ended, as `put ok`."""
        self.called_s: list[float] = []
        """When each operation began, in the loop's time."""
        self._processes = 0
        """Operations begun; each is its own process in the history, as its client may go on after
        an unknown outcome."""
        self._seen: dict[str, str | None] = {}
        """Value last seen per key, so that a comparison can succeed."""
        self.targets: Sequence[int] = ()
        """The only members that clients call; all of them while it is empty."""
        self._stopping = False

    def stop(self) -> None:
        self._stopping = True

    @property
    def acknowledged(self) -> int:
        return sum(count for how, count in self.outcomes.items() if how.endswith(" ok"))

    async def run(self, think_s: float) -> None:
        """Run one client: call, await the reply, think for `think_s` on average."""
        rng = self._rng
        member_id = 0
        while not self._stopping and self._processes < self._operations_max:
            usable = self._members.usable()
            if self.targets:
                usable = [member for member in usable if member in self.targets]
            if not usable:
                await asyncio.sleep(RETRY_S)
                continue
            if member_id not in usable or self._roaming:
                member_id = rng.choice(usable)
            draw = rng.random()
            if draw < 0.35:
                await self.put(member_id)
            elif draw < 0.40:
                await self.delete(member_id)
            elif draw < 0.60:
                await self.compare_and_swap(member_id)
            else:
                await self.get(member_id, serializable=draw < 0.70 and not self._members.paused(member_id))
            await asyncio.sleep(rng.uniform(0, 2 * think_s))

    async def put(self, member_id: int) -> bool:
        """Write a new value; whether that was acknowledged."""
        key, value = self._rng.choice(self.keys), self._value()
        command = encode(Put(key.encode(), value.encode()))
        answer = await self._write(member_id, "put", [key, value], command)
        if answer is None:
            return False
        process, outcome = answer
        assert isinstance(outcome, PutResult), outcome
        self._seen[key] = value
        self._saw(outcome.revision)
        self._end(process, "put", "ok", {"revision": outcome.revision})
        return True

    async def delete(self, member_id: int) -> None:
        key = self._rng.choice(self.keys)
        # The range end makes the command unique and covers no other key.
        command = encode(DeleteRange(key.encode(), f"{key}\0{self._value()}".encode()))
        answer = await self._write(member_id, "delete", [key], command)
        if answer is not None:
            process, outcome = answer
            assert isinstance(outcome, DeleteResult), outcome
            self._seen[key] = None
            self._saw(outcome.revision)
            self._end(process, "delete", "ok", {"revision": outcome.revision, "deleted": outcome.deleted})

    async def compare_and_swap(self, member_id: int) -> None:
        key, value = self._rng.choice(self.keys), self._value()
        expected = self._seen.get(key)
        if expected is None:
            compare = Compare(key.encode(), CompareTarget.VERSION, CompareResult.EQUAL, 0)
        else:
            compare = Compare(key.encode(), CompareTarget.VALUE, CompareResult.EQUAL, expected.encode())
        command = encode(Txn((compare,), (Put(key.encode(), value.encode()),)))
        answer = await self._write(member_id, "cas", [key, expected, value], command)
        if answer is not None:
            process, outcome = answer
            assert isinstance(outcome, TxnResult), outcome
            self._saw(outcome.revision)
            self._probes.hit("a comparison fails", when=not outcome.succeeded)
            if outcome.succeeded:
                self._seen[key] = value
            self._end(process, "cas", "ok", {"revision": outcome.revision, "succeeded": outcome.succeeded})

    async def get(self, member_id: int, *, serializable: bool = False, key: str | None = None) -> bool:
        """Read a key; whether that was answered."""
        key = key or self._rng.choice(self.keys)
        process = self._begin("get", [key, "serializable"] if serializable else [key])
        engine, term = self._members.engine(member_id), self._members.term(member_id)
        assert engine is not None, "only a running member is called"
        if not serializable:
            try:
                await self._members.read_barrier(member_id)
            except NodeError:
                self._probes.hit("a read is refused")
                self._end(process, "get", "fail")
                return False
        if self._members.engine(member_id) is not engine:
            self._end(process, "get", "fail")  # that incarnation is gone
            return False
        later = not serializable and self._members.term(member_id) > term
        self._probes.hit("a read is answered after a change of leader", when=later)
        result = engine.range(Range(key.encode()))
        old = serializable and result.revision < self._newest
        self._probes.hit("a serializable read is older than the newest write", when=old)
        found = result.kvs[0] if result.kvs else None
        shown = None if found is None else found.value.decode()
        if not serializable:
            self._seen[key] = shown
        self._saw(result.revision)
        reply = {"revision": result.revision, "value": shown, "mod": found.mod_revision if found else 0}
        self._end(process, "get", "ok", reply)
        return True

    # ---- the history

    async def _write(
        self, member_id: int, f: str, invoked: list[Any], command: bytes
    ) -> tuple[int, object] | None:
        """Propose and wait; None when the completion is recorded already: not applied, or unknown."""
        process = self._begin(f, invoked)
        self._judge.issued(command)
        term = self._members.term(member_id)
        try:
            outcome = await self._members.propose(member_id, command)
        except NotApplied:
            self._judge.refused(command)
            self._probes.hit("a write is known lost")
            self._end(process, f, "fail")
            return None
        except NodeError:
            self._judge.unknown(command)
            self._probes.hit("a write's outcome is unknown")
            self._end(process, f, "info")
            return None
        self._judge.acknowledged(command)
        later = self._members.term(member_id) > term
        self._probes.hit("a write is answered after a change of leader", when=later)
        return process, outcome

    def _saw(self, revision: int) -> None:
        self._newest = max(self._newest, revision)

    def _value(self) -> str:
        return f"v{self._processes}" + "." * self._rng.randint(0, self._padding)

    def _begin(self, f: str, invoked: list[Any]) -> int:
        self._processes += 1
        self.called_s.append(self._clock())
        self.events.append(Event(len(self.events) + 1, self._processes, "invoke", f, invoked))
        return self._processes

    def _end(self, process: int, f: str, how: str, value: Any = None) -> None:
        self.outcomes[f"{f} {how}"] += 1
        self.events.append(Event(len(self.events) + 1, process, how, f, value))
