"""All changes known from a history of writes and watches, each with its operation."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kvstore.verify.operation_history import Operation, Outcome


class Log:
    """Changes by (revision, key). Fill with `take`, then `witness`, then `complete`, then query."""

    def __init__(self) -> None:
        self.entries: dict[tuple[int, str], tuple[str, Any]] = {}
        """(revision, key) -> (type, value)."""
        self.order: list[tuple[int, str]] = []
        """The same keys, sorted; valid after `complete`."""
        self.of_key: dict[str, list[int]] = {}
        """Revisions at which each key is known to have changed, ascending; valid after `complete`."""
        self._operations: dict[int, Operation] = {}
        """Revision -> its operation; deletions of unknown outcome are not told apart."""
        self._writers: dict[tuple[str, Any], Operation] = {}
        """(key, value) -> the operation that wrote it, or may have."""
        self._deleters: dict[str, list[Operation]] = {}
        """Deletions of unknown outcome, by key."""
        self._positions: dict[int, int] = {}
        """Call of a write of unknown outcome -> its revision, once something shows it."""
        self._silent: list[Operation] = []
        """Deletions that found nothing."""
        self._orphans: dict[int, str] = {}
        """Deletions that were shown, but not acknowledged to a client: revision -> key."""
        self._idle_writers: Counter[str] = Counter()
        """How many writes of a key may have happened without a trace; valid after `complete`."""
        self._idle_deleters: Counter[str] = Counter()

    def take(self, operation: Operation) -> Iterator[str]:
        """An operation as its client saw it."""
        done = operation.outcome is Outcome.OK
        if operation.f == "delete":
            if operation.outcome is Outcome.INFO:
                self._deleters.setdefault(operation.invoked[0], []).append(operation)
            elif done and operation.completed["deleted"]:
                yield from self._own(operation.completed["revision"], operation)
            elif done:
                self._silent.append(operation)
            return
        for key, value in operation.invoked:
            self._writers[key, value] = operation
        if done:
            yield from self._own(operation.completed["revision"], operation)

    def _own(self, revision: int, operation: Operation) -> Iterator[str]:
        """The operation made that revision, with all it writes."""
        rival = self._operations.setdefault(revision, operation)
        if rival is not operation:
            yield f"two writes at revision {revision}: {rival.describe()} and {operation.describe()}"
            return
        if operation.f == "delete":
            self.entries[revision, operation.invoked[0]] = ("delete", None)
        else:
            self.entries.update({(revision, key): ("put", value) for key, value in operation.invoked})

    def witness(self, revision: int, key: str, kind: str, value: Any, where: str) -> Iterator[str]:
        """Something shows a change."""
        known = self.entries.get((revision, key))
        if known is not None:
            if known != (kind, value):
                yield f"disagreement at revision {revision}: {known!r} or {where}"
            return
        operation = self._operations.get(revision)
        if operation is not None:
            yield f"disagreement at revision {revision}: {operation.describe()} or {where}"
        elif revision in self._orphans:
            yield f"disagreement at revision {revision}: {self._orphans[revision]!r} was deleted or {where}"
        elif kind == "delete":
            self.entries[revision, key] = (kind, None)
            self._orphans[revision] = key
        else:
            yield from self._witness_put(revision, key, value, where)

    def _witness_put(self, revision: int, key: str, value: Any, where: str) -> Iterator[str]:
        writer = self._writers.get((key, value))
        if writer is None:
            yield f"no operation wrote {where}"
        elif writer.outcome is not Outcome.INFO:
            yield f"seen at revision {revision}: {writer.describe()}, {where}"
        elif self._positions.setdefault(writer.call, revision) != revision:
            yield f"written twice: {writer.describe()}, {where}"
        else:
            yield from self._own(revision, writer)

    def complete(self) -> Iterator[str]:
        """Sort what is known, and give each deletion that was shown to one that may have done it."""
        self.order = sorted(self.entries)
        for revision, key in self.order:
            self.of_key.setdefault(key, []).append(revision)
        for (key, _), writer in self._writers.items():
            idle = writer.outcome is Outcome.INFO and writer.call not in self._positions
            self._idle_writers[key] += idle
        shown = Counter(self._orphans.values())
        for key in {**self._deleters, **shown}:
            self._idle_deleters[key] = len(self._deleters.get(key, ())) - shown[key]
            if self._idle_deleters[key] < 0:
                yield f"more deletions of {key!r} were shown than requested"
        for key, revisions in self.of_key.items():
            yield from self._alternation(key, revisions)
        for operation in self._silent:
            yield from self._silence(operation)

    def _alternation(self, key: str, revisions: list[int]) -> Iterator[str]:
        """What is deleted had been there."""
        there = False
        for revision in revisions:
            is_put = self.entries[revision, key][0] == "put"
            if not is_put and not there and not self._idle_writers[key]:
                yield f"{key!r} was deleted at revision {revision}, but was not there"
            there = is_put

    def _silence(self, operation: Operation) -> Iterator[str]:
        """A deletion that found nothing: nothing was there."""
        key = operation.invoked[0]
        revisions = self.of_key.get(key, [])
        position = bisect_right(revisions, operation.completed["revision"])
        there = position and self.entries[revisions[position - 1], key][0] == "put"
        if there and self._idle_deleters[key] <= 0:
            yield f"{key!r} was there: {operation.describe()}"

    def doubt_of_life(self, key: str, mod: int, create: int, version: int) -> Iterator[str]:
        """What speaks against a put at `mod` being the `version`-th since the creation at `create`."""
        changes = self.of_key.get(key, [])
        since, until = bisect_left(changes, create), bisect_right(changes, mod)
        kinds = [self.entries[revision, key][0] for revision in changes[since:until]]
        idle = self._idle_writers[key]
        if "delete" in kinds:
            yield "was deleted since"
        puts = kinds.count("put") + (changes[since:until][:1] != [create])
        if not puts <= version <= puts + idle:
            yield f"is one of {puts} puts since, and perhaps {idle} more"
        if changes[since:until][:1] != [create] and not idle:
            yield "was not created then"
        earlier = since and self.entries[changes[since - 1], key][0] == "put"
        if earlier and self._idle_deleters[key] <= 0:
            yield f"was there since revision {changes[since - 1]}"

    def with_revisions(self) -> list[Operation]:
        """All operations that certainly took effect, with their revisions; unanswered ones have no return."""
        found = [operation for operation in self._operations.values() if operation.outcome is Outcome.OK]
        by_call = {writer.call: writer for writer in self._writers.values()}
        for call, revision in self._positions.items():
            reply = {"revision": revision}
            found.append(
                replace(by_call[call], outcome=Outcome.OK, completed=reply, ret=None, returned_ns=None)
            )
        return found + self._silent
