"""One logical client: its record, its pace, its way from member to member."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from kvstore.verify.load.client_protocol import (
    CertainFailureError,
    Client,
    NotServedError,
    UnknownOutcomeError,
)

BACKOFF_S = (0.1, 1.0)
"""After a failure, doubled up to the second while failures go on: members that are down must not fill the
history with refusals."""

MOVE_PROBABILITY = 0.7
"""After a failure a slot tries another member, usually: those that stay are the ones who would see a
stale leader answer."""

EVENTS_MAX = 2_000_000
"""Events one process may record, about half a gigabyte; a test ends long before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """The parameters of one process of clients, as JSON."""

    workload: str
    client: str
    """`thin` or `aetcd`."""
    endpoints: tuple[str, ...]
    slots: tuple[int, ...]
    """The numbers of the slots that live in this process."""
    slots_total: int
    """In all processes; a slot's processes are its number plus multiples of this."""
    rate: float
    """Operations per second aimed at by all slots together."""
    timeout_s: float
    """Of one call."""
    seed: int
    began_ns: int
    """Monotonic; the moment from which blocks of keys are counted, the same in all processes."""
    history: str
    """File to write."""
    options: dict[str, Any] = field(default_factory=dict)
    """For the workload, by name."""

    @classmethod
    def parse(cls, text: str) -> LoadSpec:
        fields = json.loads(text)
        return cls(**{**fields, "endpoints": tuple(fields["endpoints"]), "slots": tuple(fields["slots"])})


class Recorder:
    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.count = 0

    def event(self, process: int, kind: str, f: str, value: Any, **more: Any) -> None:
        """Raises OverflowError past EVENTS_MAX."""
        self.count += 1
        if self.count > EVENTS_MAX:
            raise OverflowError(f"more than {EVENTS_MAX} events")
        line = {"time": time.monotonic_ns(), "process": process, "type": kind, "f": f, "value": value, **more}
        self._out.write(json.dumps(line, separators=(",", ":")) + "\n")


class Load:
    def __init__(self, spec: LoadSpec, out: TextIO) -> None:
        self.spec = spec
        self.recorder = Recorder(out)
        self.stopping = asyncio.Event()
        self.not_served: str | None = None
        """The service that the server does not know, once that has been found out."""

    def block(self, seconds: float) -> int:
        """The number of the block of keys in use now: all processes move on together."""
        return int((time.monotonic_ns() - self.spec.began_ns) / 1e9 / seconds)

    def is_stopping(self) -> bool:
        return self.stopping.is_set()

    async def sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return


class Slot:
    def __init__(self, load: Load, number: int, clients: Sequence[Client]) -> None:
        self.load = load
        self.number = number
        self.process = number
        """Replaced after an unknown outcome. Invariant: congruent to `number` modulo `slots_total`."""
        self.rng = random.Random(f"{load.spec.seed}/slot/{number}")  # noqa: S311  repeats with its seed
        self._clients = clients
        self._position = number % len(clients)
        self._due = time.monotonic()
        self._fresh = 0
        self._failures = 0
        """In a row, up to now."""

    @property
    def client(self) -> Client:
        return self._clients[self._position]

    @property
    def position(self) -> int:
        """Which member it talks to, counted from 0."""
        return self._position

    def move(self) -> None:
        if len(self._clients) > 1:
            self._position = (self._position + self.rng.randrange(1, len(self._clients))) % len(self._clients)

    def fresh(self) -> int:
        """A number that no other slot draws."""
        self._fresh += 1
        return self._fresh * self.load.spec.slots_total + self.number

    async def pace(self) -> None:
        interval = self.load.spec.slots_total / self.load.spec.rate
        self._due = max(self._due + interval * self.rng.uniform(0.5, 1.5), time.monotonic() - interval)
        await self.load.sleep(max(0.0, self._due - time.monotonic()))

    async def perform(
        self, f: str, asked: Any, action: Callable[[], Awaitable[Any]], *, reads_only: bool = False
    ) -> Any:
        """Record the operation around `action`, which returns the completed value; None unless it is ok."""
        record, process, node = self.load.recorder.event, self.process, self._position
        record(process, "invoke", f, asked, node=node)
        try:
            completed = await action()
        except NotServedError as error:
            record(process, "fail", f, asked, node=node, error=str(error))
            self.load.not_served = str(error)
            self.load.stopping.set()
            return None
        except CertainFailureError as error:
            record(process, "fail", f, asked, node=node, error=str(error))
        except UnknownOutcomeError as error:
            record(process, "fail" if reads_only else "info", f, asked, node=node, error=str(error))
            if not reads_only:
                self.process += self.load.spec.slots_total
        else:
            record(process, "ok", f, completed, node=node)
            self._failures = 0
            return completed
        if self.rng.random() < MOVE_PROBABILITY:
            self.move()
        least, most = BACKOFF_S
        await self.load.sleep(min(most, least * 2**self._failures) * self.rng.uniform(0.5, 1.5))
        self._failures += 1
        return None
