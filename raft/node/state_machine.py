"""What the driver needs of a replicated state machine. It never looks inside a command."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, Self

from raft.storage.storage_protocol import Row


class StateMachine(Protocol):
    """A deterministic function of (state, commands). Never blocks, never reads a clock."""

    def apply(self, index: int, term: int, commands: Sequence[bytes], wanted: bool) -> Sequence[object]:
        """Apply one committed batch; one outcome per command, in order.

        `wanted` is True when the batch came from this process, so that outcomes have a reader;
        otherwise the return value is ignored and may be empty. A command that is refused is an
        outcome, not an exception: an exception here stops the process.
        """

    def apply_change(self, index: int, term: int, command: bytes, fits: bool) -> tuple[bool, object]:
        """Apply the machine's half of a committed membership change: (accepted, outcome).

        `fits` is False when the configuration cannot make the change; then it must be refused. What is
        refused changes neither the machine nor the configuration.
        """

    def peer_urls(self, member_id: int) -> tuple[str, ...] | None:
        """Where a member is reached, as far as is applied; None when the machine does not know it."""

    def is_removed(self, member_id: int) -> bool:
        """Whether the member was removed from the cluster, for ever."""

    def drain_changes(self) -> list[Row]:
        """Rows changed since the last drain, for the state file, newest value per key."""

    def pending_change_bytes(self) -> int:
        """Approximate size of what `drain_changes` would return."""

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Take a chunk of rows of a state image, in key order; called before any apply."""

    def load_done(self) -> None:
        """The image is complete: build whatever is derived from it."""

    def fresh(self) -> Self:
        """An empty machine of the same kind, for an image to be loaded into."""

    def replace(self, loaded: Self) -> None:
        """Hold from now on exactly the state of `loaded`, which is given up. At once, however large it is."""
