"""What the node needs of a replicated state machine. It never looks inside a command."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, Self

from raft.storage.storage_protocol import Row


class StateMachine(Protocol):
    """A deterministic function of (state, commands). Never blocks, never reads a clock."""

    def apply(self, index: int, term: int, commands: Sequence[bytes], wanted: bool) -> Sequence[object]:
        """Apply one committed batch; one outcome per command, in order.

        `wanted` is True when the batch came from this incarnation, so that callers wait for the outcomes;
        otherwise the return value is ignored and may be empty. A command that is refused is an
        outcome, not an exception: an exception here stops the process.
        """

    def apply_change(self, index: int, term: int, command: bytes, fits: bool) -> tuple[bool, object]:
        """Apply the machine's half of a committed membership change: (accepted, outcome).

        `fits` is False when the configuration cannot make the change; then it must be refused. What is
        refused changes neither the machine nor the configuration.
        """

    def peer_urls(self, member_id: int) -> tuple[str, ...] | None:
        """Where to reach a member, as of the applied index; None when the machine does not know it."""

    def is_removed(self, member_id: int) -> bool:
        """Whether the member was ever removed from the cluster; its id is never used again."""

    def drain_changes(self) -> list[Row]:
        """Rows changed since the last drain, for the backend, newest value per key."""

    def pending_change_bytes(self) -> int:
        """Approximate size of what `drain_changes` would return."""

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Take a chunk of the backend's rows, in key order; called before any apply."""

    def load_done(self) -> None:
        """All rows are loaded: build what is derived from them."""

    def fresh(self) -> Self:
        """An empty machine of the same kind, to load a snapshot into."""

    def replace(self, loaded: Self) -> None:
        """Take over exactly the state of `loaded`, which is not used again. In constant time."""
