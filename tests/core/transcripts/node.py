"""One member of a script: a core, etcd's in-memory storage, and the adapter to etcd's way of working.

The core is the product's, unchanged. What the adapter does, so that both print the same:

* It takes a Ready after every single input and gathers those until the script asks for one. This core
  sends the appends due once per Ready; etcd does so at each input.
* Without storage threads (sync mode) it executes a gathered Ready in one go as etcd's harness does:
  committed entries are handed out and applied in the Ready that first stores them, own
  acknowledgements count after that. The core itself knows only asynchronous storage.
* It hands out committed entries in pages of the script's size; the core's own pages count data only.
* A vote response is stepped without its commit index, which etcd's does not carry.
* A commit broadcast is stepped as an ordinary empty append, so that it is acknowledged as in etcd.
* TIMEOUT_NOW leaves after the appends that the same input made due.
* Every heartbeat response may trigger an append, not only the first of each interval.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from raft.core import (
    AppendToken,
    BootState,
    ConfChange,
    Config,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageType,
    RaftCore,
    Role,
    SnapshotMeta,
)
from raft.core.invariants import History, check_state, check_step, observe
from tests.core.transcripts.shapes import (
    ROLES,
    entries_text,
    entry_line,
    entry_size,
    message_line,
    snapshot_text,
)

Action = Callable[[RaftCore], Any]
BASE_TERM = 1
"""Term of the snapshot a script's members start from, though they start in term 0."""


@dataclass
class Write:
    """One item for the storage: what a gathered Ready wants durable."""

    hard_state: HardState | None
    entries: list[Entry]
    snapshot: SnapshotMeta | None
    responses: list[Message]
    tokens: list[AppendToken]
    """Of the core's append works gathered here; none when only etcd would write something."""

    def text(self, node_id: int) -> str:
        term, vote, commit = self.hard_state or (0, 0, 0)
        line = f"{node_id:x}->AppendThread MsgStorageAppend Term:{term} Log:0/0"
        line += f" Commit:{commit}" if commit else ""
        line += f" Vote:{vote}" if vote else ""
        line += entries_text(self.entries)
        line += f" Snapshot: {snapshot_text(self.snapshot)}" if self.snapshot is not None else ""
        return line


@dataclass
class Gathered:
    """The core's Readies since the script last asked for one."""

    messages: list[Message] = field(default_factory=list)
    responses: list[Message] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    snapshot: SnapshotMeta | None = None
    tokens: list[AppendToken] = field(default_factory=list)


class Node:
    """A member with its disk; with `threads`, disk and state machine work only when told."""

    def __init__(
        self, config: Config, conf: ConfState, index: int, history: History, *, threads: bool, page_max: int
    ) -> None:
        self.threads = threads
        self.history = history
        self.page_max = page_max
        """Bytes of committed entries handed out and not yet applied."""
        term = BASE_TERM if index else 0
        self.base = SnapshotMeta(index, term, conf)
        self.newest = self.base
        """Metadata of the newest snapshot, sent to followers."""
        self.stored: list[Entry] = []
        self.writes: list[Write] = []
        self.applies: list[list[Entry]] = []
        self.applying = 0
        """Bytes handed to the state machine and not yet reported applied."""
        self.paused = False
        """A page did not take all there was: no other before one is applied."""
        self.gathered = Gathered()
        self.start = index
        self.shown = index
        """Newest entry handed out as committed."""
        boot = BootState(
            hard_state=HardState(term, 0, index), snapshot=self.base, entries=[], applied=index, conf=conf
        )
        self.core = RaftCore(config, boot, random.Random(config.member_id))
        # A disk cannot hold a snapshot of a later term than its hard state; a script's begins so.
        self.core._state.term = 0
        self.core._submitted = HardState(0, 0, index)
        self.soft_shown: tuple[int, Role] = (0, Role.FOLLOWER)
        self.hard_shown = HardState(0, 0, index)

    @property
    def id(self) -> int:
        return self.core.id

    # ------------------------------------------------------------------ inputs

    def do(self, action: Action) -> Any:
        """Give the core one input, under the invariants, and take what it wants done."""
        before = observe(self.core)
        try:
            return action(self.core)
        finally:
            # Term 0 and the first term contradict a snapshot of the first term, which no disk can hold.
            if self.core.term > BASE_TERM or self.core.last_index > self.start:
                check_state(self.core)
                check_step(before, self.core)
                self.history.check([self.core])
            self._gather()

    def step(self, message: Message) -> None:
        if message.type is MessageType.VOTE and message.term < self.core.term:
            return
        if message.type is MessageType.APPEND and message.context:
            message = replace(message, context=0)
        if message.type in (MessageType.VOTE_RESPONSE, MessageType.PRE_VOTE_RESPONSE):
            message = replace(message, commit=0, log_term=0)
        progress = self.core._state.tracker.progress.get(message.from_)
        if message.type is MessageType.HEARTBEAT_RESPONSE and progress is not None:
            progress.nudge_due = True
        self.do(lambda core: core.step(message))

    def _gather(self) -> None:
        ready = self.core.take_ready()
        gathered = self.gathered
        for message in ready.messages:
            if message.type is MessageType.SNAPSHOT:
                message.snapshot = self.newest
        # This core sends appends after the input, and TIMEOUT_NOW before them; etcd sends it after them.
        gathered.messages += sorted(ready.messages, key=lambda m: m.type is MessageType.TIMEOUT_NOW)
        work = ready.append
        if work is None:
            return
        gathered.responses += work.responses
        gathered.tokens.append(work.token)
        if work.snapshot is not None:
            gathered.snapshot = work.snapshot
            gathered.entries = []
        if work.entries:
            first = work.entries[0].index
            gathered.entries = [entry for entry in gathered.entries if entry.index < first]
            gathered.entries += work.entries

    # ------------------------------------------------------------------ a Ready

    def _hard_state(self) -> HardState:
        state = self.core._state
        return HardState(state.term, state.vote, state.log.committed)

    def _appliable(self) -> int:
        """Newest entry that may be applied; with threads only of those on disk, as etcd has it."""
        log = self.core._state.log
        return min(log.committed, log.stable) if self.threads else log.committed

    def _committed(self) -> list[Entry]:
        """The next page of committed entries."""
        log = self.core._state.log
        high = self._appliable()
        if log.snapshot is not None or self.paused or self.shown >= high:
            return []
        page: list[Entry] = []
        size = self.applying
        for entry in log.between(self.shown + 1, high + 1):
            size += entry_size(entry)
            if page and size > self.page_max:
                break
            page.append(entry)
        return page

    def has_ready(self) -> bool:
        gathered, core = self.gathered, self.core
        return bool(
            gathered.messages
            or gathered.responses
            or gathered.entries
            or gathered.snapshot is not None
            or self.soft_shown != (core.leader, core.role)
            or self.hard_shown != self._hard_state()
            or self._committed()
        )

    def process_ready(self) -> tuple[list[str], list[Message]]:
        """Take and execute one Ready: what etcd would print of it, and the messages that leave."""
        if not self.has_ready():
            return ["<empty Ready>"], []
        gathered, self.gathered = self.gathered, Gathered()
        hard_state = self._hard_state()
        term_or_vote_changed = hard_state[:2] != self.hard_shown[:2]
        must_sync = bool(gathered.entries) or term_or_vote_changed
        lines = [f"Ready MustSync={str(must_sync).lower()}:"]
        if self.soft_shown != (self.core.leader, self.core.role):
            self.soft_shown = (self.core.leader, self.core.role)
            lines.append(f"Lead:{self.core.leader} State:{ROLES[self.core.role]}")
        changed = hard_state if hard_state != self.hard_shown else None
        self.hard_shown = hard_state
        if changed is not None:
            vote = f" Vote:{changed.vote}" if changed.vote else ""
            lines.append(f"HardState Term:{changed.term}{vote} Commit:{changed.commit}")
        lines += _listed("Entries:", [entry_line(entry) for entry in gathered.entries])
        if gathered.snapshot is not None:
            lines.append(f"Snapshot {snapshot_text(gathered.snapshot)}")
        page = self._committed()
        if gathered.snapshot is not None:
            self.shown = gathered.snapshot.index
        elif page:
            self.shown = page[-1].index
            self.applying += sum([entry_size(entry) for entry in page])
            self.paused = self.applying >= self.page_max or self.shown < self._appliable()
        lines += _listed("CommittedEntries:", [entry_line(entry) for entry in page])
        write = Write(changed, gathered.entries, gathered.snapshot, gathered.responses, gathered.tokens)
        said = [message_line(message) for message in gathered.messages]
        if self.threads:
            said += self._queue(write, page)
            leaving = gathered.messages
        else:
            said += [message_line(message) for message in gathered.responses]
            leaving = gathered.messages + gathered.responses
            self._execute(write, page)
        return lines + _listed("Messages:", said), leaving

    def _execute(self, write: Write, page: list[Entry]) -> None:
        self._store(write)
        self._apply(page)
        self.written(write)
        self.applied(page)

    def _queue(self, write: Write, page: list[Entry]) -> list[str]:
        said = []
        if write.hard_state or write.entries or write.snapshot is not None or write.responses:
            self.writes.append(write)
            said.append(write.text(self.id) + _responses(write))
        else:
            self.written(write)
        if page:
            self.applies.append(page)
            said.append(f"{self.id:x}->ApplyThread MsgStorageApply Term:0 Log:0/0{entries_text(page)}")
        return said

    # ------------------------------------------------------------------ storage and state machine

    def _store(self, write: Write) -> None:
        if write.snapshot is not None:
            self.base = self.newest = write.snapshot
            self.stored = []
        if write.entries:
            self.stored[write.entries[0].index - self.base.index - 1 :] = write.entries

    def _apply(self, page: list[Entry]) -> None:
        for entry in page:
            if entry.kind is not EntryKind.NORMAL:
                change = ConfChange.decode(entry.data)
                self.do(lambda core, change=change: core.apply_conf(change))
            self.newest = SnapshotMeta(entry.index, entry.term, self.core.conf)

    def written(self, write: Write) -> None:
        """The core hears of every work it handed out; etcd's acknowledges each entry to itself."""
        for token in write.tokens:
            self.do(lambda core, token=token: core.on_append_done(token))

    def applied(self, page: list[Entry]) -> None:
        if page:
            self.applying -= sum([entry_size(entry) for entry in page])
            self.paused = self.applying >= self.page_max
            nbytes = sum([len(entry.data) for entry in page])
            self.do(lambda core: core.on_apply_done(page[-1].index, nbytes))

    def process_append_thread(self) -> tuple[list[str], Write]:
        """Store one item: what etcd would print, and the item, whose responses leave now. The caller reports
        its completion."""
        write = self.writes.pop(0)
        self._store(write)
        lines = ["Processing:", write.text(self.id), "Responses:"]
        return lines + [message_line(message) for message in write.responses], write

    def process_apply_thread(self) -> tuple[list[str], list[Entry]]:
        """Apply one item: what etcd would print, and the item. The caller reports its completion."""
        page = self.applies.pop(0)
        self._apply(page)
        line = f"{self.id:x}->ApplyThread MsgStorageApply Term:0 Log:0/0{entries_text(page)}"
        return ["Processing:", line, "Responses:"], page

    # ------------------------------------------------------------------ looking

    def log_lines(self) -> list[str]:
        if not self.stored:
            return [f"log is empty: first index={self.base.index + 1}, last index={self.base.index}"]
        return [entry_line(entry) for entry in self.stored]

    def compact(self, index: int) -> None:
        self.do(lambda core: core.compact(index))
        dropped = index - self.base.index
        self.base = SnapshotMeta(index, self.stored[dropped - 1].term, self.base.conf)
        del self.stored[:dropped]


def _listed(title: str, items: list[str]) -> list[str]:
    return [title, *items] if items else []


def _responses(write: Write) -> str:
    return f" Responses:[{' '.join([message_line(m) for m in write.responses])}]" if write.responses else ""
