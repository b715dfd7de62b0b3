"""The verbs of the scripts: a cluster of nodes, one bag of messages in flight, and what is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from raft.core import (
    ConfChange,
    Config,
    ConfState,
    ConfStep,
    ConfTransition,
    DropReason,
    Entry,
    EntryKind,
    Message,
    MessageType,
    ProposalDropped,
)
from raft.core.invariants import History
from raft.core.replication import append_entries
from tests.core.transcripts.grammar import Directive
from tests.core.transcripts.node import Node
from tests.core.transcripts.shapes import STEP_KINDS, TYPES, message_line, state_line, status_lines

Completion = Callable[[], None]
UNLIMITED = 2**40
ELECTION_TICKS = 3
ROUNDS_MAX = 1000
"""Rounds of one `stabilize`; scripts need a few dozen."""
DROPPED = "raft proposal dropped"
LEASE_BASED = "ERROR ignoring MsgForgetLeader due to ReadOnlyLeaseBased"


class Cluster:
    """The state of one script. `run` executes one block and returns what it prints, logger lines left out."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        self.bag: list[tuple[int, Message | Completion]] = []
        """Messages, and the completions that etcd's storage threads send as messages to their own node."""
        self.history = History()
        self.quiet = False
        """The log level is `none`: only errors are printed."""
        self.unvalidated: set[int] = set()
        """Members that let any membership change into their log."""
        self.lease_based: set[int] = set()

    def run(self, block: Directive) -> list[str]:
        verbs: dict[str, Callable[[Directive], list[str] | None]] = {
            "add-nodes": self._add_nodes,
            "campaign": lambda b: self._node(b).do(lambda core: core.campaign()),
            "compact": self._compact,
            "deliver-msgs": self._deliver_msgs,
            "forget-leader": self._forget_leader,
            "log-level": self._log_level,
            "process-append-thread": lambda b: self._each(b, "processing append thread", self._append_thread),
            "process-apply-thread": lambda b: self._each(b, "processing apply thread", self._apply_thread),
            "process-ready": lambda b: self._each(b, "handling Ready", self._process_ready),
            "propose": lambda b: self._propose(self._node(b), EntryKind.NORMAL, b.words[1].encode()),
            "propose-conf-change": self._propose_conf_change,
            "raft-log": lambda b: self._node(b).log_lines(),
            "raft-state": lambda b: [state_line(node.core) for _, node in sorted(self.nodes.items())],
            "report-unreachable": lambda b: self._node(b).do(lambda core: core.report_unreachable(b.ids[1])),
            "send-snapshot": self._send_snapshot,
            "set-randomized-election-timeout": self._set_timeout,
            "stabilize": lambda b: self._stabilize(b.ids or sorted(self.nodes)),
            "status": lambda b: status_lines(self._node(b).core),
            "tick-election": lambda b: self._tick(b, ELECTION_TICKS),
            "tick-heartbeat": lambda b: self._tick(b, 1),
            "transfer-leadership": self._transfer,
            "_breakpoint": lambda b: None,
        }
        if block.command not in verbs:
            raise ValueError(f"unknown verb {block.command}")
        return verbs[block.command](block) or ["ok"]

    def prints(self, block: Directive) -> bool:
        """Whether the block's output is more than `ok` or an error."""
        return not self.quiet and block.value("log-level", "") != "none"

    def _node(self, block: Directive) -> Node:
        return self.nodes[block.ids[0]]

    # ------------------------------------------------------------------ building

    def _add_nodes(self, block: Directive) -> None:
        conf = ConfState(tuple(sorted(block.numbers("voters"))), tuple(sorted(block.numbers("learners"))))
        page_max = int(block.value("max-committed-size-per-ready", str(UNLIMITED)))
        for _ in range(block.ids[0]):
            node_id = len(self.nodes) + 1
            config = Config(
                member_id=node_id,
                election_ticks=ELECTION_TICKS,
                heartbeat_ticks=1,
                append_bytes_max=UNLIMITED,
                append_entries_max=UNLIMITED,
                inflight_messages_max=int(block.value("inflight", str(UNLIMITED))),
                inflight_bytes_max=UNLIMITED,
                uncommitted_bytes_max=UNLIMITED,
                apply_bytes_max=UNLIMITED,
                applying_bytes_max=UNLIMITED,
                pre_vote=block.flag("prevote"),
                check_quorum=block.flag("checkquorum"),
                withhold_votes=block.flag("checkquorum"),
                step_down_on_removal=block.flag("step-down-on-removal"),
            )
            self.nodes[node_id] = Node(
                config,
                conf,
                int(block.value("index", "0")),
                self.history,
                threads=block.flag("async-storage-writes"),
                page_max=page_max,
            )
            if block.flag("disable-conf-change-validation"):
                self.unvalidated.add(node_id)
            if block.value("read-only", "safe") == "lease-based":
                self.lease_based.add(node_id)

    def _log_level(self, block: Directive) -> None:
        self.quiet = block.words[0] == "none"

    # ------------------------------------------------------------------ messages

    def _deliver_msgs(self, block: Directive) -> list[str]:
        names = {name: kind for kind, name in TYPES.items()}
        wanted = names[block.value("type", "")] if "type" in block.args else None
        lines, delivered = self._deliver(block.ids, block.numbers("drop"), wanted)
        return lines if delivered else ["no messages"]

    def _deliver(
        self, ids: Iterable[int], dropped: Iterable[int] = (), wanted: MessageType | None = None
    ) -> tuple[list[str], bool]:
        """Deliver, or discard, what is in the bag for these members now: the lines, and whether there was
        anything. Completions are delivered unless `wanted` is given, and never discarded."""
        lines: list[str] = []
        delivered = False
        for node_id, drop in [(i, False) for i in ids] + [(i, True) for i in dropped]:
            chosen: list[Message | Completion] = []
            kept: list[tuple[int, Message | Completion]] = []
            for to, item in self.bag:
                if isinstance(item, Message):
                    fits = wanted is None or item.type is wanted
                else:
                    fits = wanted is None and not drop
                if to == node_id and fits:
                    chosen.append(item)
                else:
                    kept.append((to, item))
            self.bag = kept
            for item in chosen:
                delivered = True
                if isinstance(item, Message):
                    lines.append(("dropped: " if drop else "") + message_line(item))
                if not drop:
                    self._step_node(self.nodes[node_id], item)
        return lines, delivered

    def _step_node(self, node: Node, item: Message | Completion) -> None:
        if not isinstance(item, Message):
            item()
        elif item.type is MessageType.PROPOSE:
            entry = item.entries[0]
            self._propose(node, entry.kind, entry.data, origin=item.from_)
        else:
            node.step(item)

    def _post(self, messages: Iterable[Message]) -> None:
        self.bag += [(message.to, message) for message in messages]

    # ------------------------------------------------------------------ work of a node

    def _each(self, block: Directive, doing: str, work: Callable[[Node], list[str]]) -> list[str]:
        lines: list[str] = []
        for node_id in block.ids:
            done = work(self.nodes[node_id])
            lines += [f"> {node_id} {doing}", *[f"  {line}" for line in done]] if len(block.ids) > 1 else done
        return lines

    def _process_ready(self, node: Node) -> list[str]:
        lines, messages = node.process_ready()
        self._post(messages)
        return lines

    def _append_thread(self, node: Node) -> list[str]:
        if not node.writes:
            return ["no append work to perform"]
        lines, write = node.process_append_thread()
        self._post(write.responses)
        self.bag.append((node.id, lambda: node.written(write)))
        return lines

    def _apply_thread(self, node: Node) -> list[str]:
        if not node.applies:
            return ["no apply work to perform"]
        lines, page = node.process_apply_thread()
        self.bag.append((node.id, lambda: node.applied(page)))
        return lines

    def _stabilize(self, ids: list[int]) -> list[str]:
        nodes = [self.nodes[node_id] for node_id in ids]
        lines: list[str] = []

        def section(node: Node, doing: str, content: list[str]) -> None:
            lines.extend([f"> {node.id} {doing}", *[f"  {line}" for line in content]])

        for _ in range(ROUNDS_MAX):
            busy = False
            for node in nodes:
                if node.has_ready():
                    busy = True
                    section(node, "handling Ready", self._process_ready(node))
            for node in nodes:
                content, delivered = self._deliver([node.id])
                if delivered:
                    busy = True
                    section(node, "receiving messages", content)
            for node in nodes:
                content = []
                while node.writes:
                    content += self._append_thread(node)
                if content:
                    busy = True
                    section(node, "processing append thread", content)
            for node in nodes:
                content = []
                while node.applies:
                    content += self._apply_thread(node)
                if content:
                    busy = True
                    section(node, "processing apply thread", content)
            if not busy:
                return lines
        raise AssertionError("never stable")

    # ------------------------------------------------------------------ proposals

    def _propose(self, node: Node, kind: EntryKind, data: bytes, origin: int = 0) -> list[str]:
        """Propose at any member; a follower passes it on in a message, as etcd's core does."""
        try:
            if kind is EntryKind.NORMAL:
                node.do(lambda core: core.propose([data]))
            else:
                self._propose_conf(node, data)
        except ProposalDropped as dropped:
            if dropped.reason is not DropReason.NOT_LEADER or not dropped.leader:
                return [DROPPED]
            message = Message(MessageType.PROPOSE, dropped.leader, origin or node.id)
            message.entries = [Entry(0, 0, kind, data)]
            node.gathered.messages.append(message)
        return []

    def _propose_conf(self, node: Node, data: bytes) -> None:
        """A refused change leaves an empty entry at its index; with validation off none is refused."""
        change = ConfChange.decode(data)
        try:
            node.do(lambda core: core.propose_conf(change))
        except ProposalDropped as dropped:
            if dropped.reason not in (DropReason.CONF_PENDING, DropReason.CONF_INVALID):
                raise
            if node.id not in self.unvalidated:
                node.do(lambda core: core.propose([b""]))
                return
            state = node.core._state
            node.do(lambda core: append_entries(state, change.entry_kind, (data,)))
            state.pending_conf_index = state.log.last_index

    def _propose_conf_change(self, block: Directive) -> list[str]:
        steps = [
            ConfStep(STEP_KINDS[word[0]], int(word[1:])) for line in block.input for word in line.split()
        ]
        how = ("auto", "implicit", "explicit").index(block.value("transition", "auto"))
        change = ConfChange(tuple(steps), ConfTransition(how))
        return self._propose(self._node(block), change.entry_kind, change.encode())

    # ------------------------------------------------------------------ the rest

    def _tick(self, block: Directive, count: int) -> None:
        for _ in range(count):
            self._node(block).do(lambda core: core.tick())

    def _set_timeout(self, block: Directive) -> None:
        self._node(block).core._state.election_timeout = int(block.value("timeout", ""))

    def _transfer(self, block: Directive) -> None:
        source, target = int(block.value("from", "")), int(block.value("to", ""))
        self.nodes[source].do(lambda core: core.transfer_leader(target))

    def _forget_leader(self, block: Directive) -> list[str]:
        node = self._node(block)
        if node.id in self.lease_based:
            return [LEASE_BASED]  # a lease on the leader's time is not ours to give up; this core has none
        node.do(lambda core: core.forget_leader())
        return []

    def _send_snapshot(self, block: Directive) -> list[str]:
        node, target = self._node(block), block.ids[1]
        message = Message(MessageType.SNAPSHOT, target, node.id, node.core.term, snapshot=node.newest)
        self._post([message])
        return [message_line(message)]

    def _compact(self, block: Directive) -> list[str]:
        self._node(block).compact(block.ids[1])
        return self._node(block).log_lines()
