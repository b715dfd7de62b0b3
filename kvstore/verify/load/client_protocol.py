"""What a workload may ask of a client, and the three ways an answer fails to come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, Protocol


class CertainFailureError(Exception):
    """The operation was certainly not applied; the text says why."""


class UnknownOutcomeError(Exception):
    """The operation may have been applied, may be later, or never."""


class NotServedError(Exception):
    """The server does not know the service: the workload cannot run against it."""


class Held(NamedTuple):
    value: str | None
    """None for a missing key."""
    mod: int
    """Revision of its last change; 0 for a missing key."""
    version: int = 0
    create: int = 0


MISSING = Held(None, 0)


class TxnReply(NamedTuple):
    revision: int
    succeeded: bool
    reads: Sequence[Held]
    """One per key read, in the order asked; of either branch."""


class WatchReply(NamedTuple):
    revision: int
    """Of the header: everything up to it has been delivered when there are no events (progress)."""
    events: Sequence[dict[str, Any]]
    """`type`, `key`, `value`, `mod`, `create`, `version`, and `prev` ([value, mod] before, or None)."""
    created: bool = False
    compacted: int = 0
    """Not 0 when the watch ended because its start had been compacted."""
    canceled: bool = False


class Client(Protocol):
    """One connection to one member.

    Every call raises CertainFailureError, UnknownOutcomeError or NotServedError; revisions are the header's.
    """

    async def get(self, key: str, *, serializable: bool = False) -> tuple[int, Held]: ...

    async def put(self, key: str, value: str, *, lease: int = 0) -> int: ...

    async def delete(self, key: str) -> tuple[int, int]:
        """The revision and how many keys were deleted."""

    async def compare_and_set(self, key: str, expected: str | None, value: str) -> tuple[int, bool]: ...

    async def txn(
        self, unchanged: Sequence[tuple[str, int]], reads: Sequence[str], writes: Sequence[tuple[str, str]]
    ) -> TxnReply:
        """If each key still has its mod revision: read, then write. Else only read."""

    async def list(
        self, prefix: str, *, serializable: bool = False
    ) -> tuple[int, list[tuple[str, Held]]]: ...

    async def lease_grant(self, ttl_s: int) -> tuple[int, int]:
        """The id and the granted TTL in seconds."""

    async def lease_keep_alive(self, lease: int) -> int:
        """The remaining TTL in seconds; 0 when the lease is gone."""

    async def lease_revoke(self, lease: int) -> int: ...

    async def lock(self, name: str, lease: int, timeout_s: float) -> tuple[str, int]:
        """Wait for the lock; the key that holds it and the revision of the answer."""

    async def unlock(self, key: str) -> int: ...

    def watch(
        self, prefix: str, start: int, *, previous: bool, no_put: bool = False, no_delete: bool = False
    ) -> AsyncIterator[WatchReply]: ...

    async def close(self) -> None: ...
