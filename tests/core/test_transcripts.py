"""etcd-io/raft's interaction scripts, replayed against this core and compared at the level of states.

Compared after each directive: roles, terms and leaders (`raft-state`), logs on disk (`raft-log`), what the
leader believes of its peers (`status`), and from every printed Ready the hard state and the committed
entries. Message by message the two differ by design: this core sends one append per follower and turn,
answers no commit notice, and makes no message of what a member tells itself.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from raft.core import (
    BootState,
    ConfChange,
    Config,
    ConfState,
    ConfStep,
    ConfStepKind,
    ConfTransition,
    DropReason,
    EntryKind,
    HardState,
    Message,
    MessageType,
    ProposalDropped,
    RaftCore,
    Role,
    SnapshotMeta,
)
from raft.core.invariants import History, check_state, check_step, observe

NOT_OFFERED = {
    "forget_leader_read_only_lease_based.txt": "reads by lease are not offered",
    "confchange_disable_validation.txt": "the check of membership changes cannot be switched off",
}

FILES = (
    "async_storage_writes.txt",
    "async_storage_writes_append_aba_race.txt",
    "campaign.txt",
    "campaign_learner_must_vote.txt",
    "checkquorum.txt",
    "confchange_v1_add_single.txt",
    "confchange_v1_remove_leader.txt",
    "confchange_v1_remove_leader_stepdown.txt",
    "confchange_v2_add_double_auto.txt",
    "confchange_v2_add_double_implicit.txt",
    "confchange_v2_add_single_auto.txt",
    "confchange_v2_add_single_explicit.txt",
    "confchange_v2_replace_leader.txt",
    "forget_leader.txt",
    "heartbeat_resp_recovers_from_probing.txt",
    "prevote.txt",
    "probe_and_replicate.txt",
    "single_node.txt",
    "snapshot_succeed_via_app_resp.txt",
    "snapshot_succeed_via_app_resp_behind.txt",
)

UNLIMITED = 2**40
ROUNDS_MAX = 200
STEP_KINDS = {
    "v": ConfStepKind.ADD_VOTER,
    "l": ConfStepKind.ADD_LEARNER,
    "r": ConfStepKind.REMOVE,
    "u": ConfStepKind.UPDATE,
}
TYPES = {"MsgApp": MessageType.APPEND, "MsgSnap": MessageType.SNAPSHOT}
ROLES = {
    Role.FOLLOWER: "StateFollower",
    Role.PRE_CANDIDATE: "StatePreCandidate",
    Role.CANDIDATE: "StateCandidate",
    Role.LEADER: "StateLeader",
}


def draw_entry(entry):
    if entry.kind is EntryKind.NORMAL:
        return f"{entry.term}/{entry.index} EntryNormal {json.dumps(entry.data.decode())}"
    letters = {kind: letter for letter, kind in STEP_KINDS.items()}
    steps = " ".join(f"{letters[step.kind]}{step.member}" for step in ConfChange.decode(entry.data).steps)
    return f"{entry.term}/{entry.index} EntryConfChange {steps}".rstrip()


class Node:
    """One core with etcd's in-memory storage; with `threads`, its disk and state machine work when told."""

    def __init__(self, cluster, config, conf, index, *, threads):
        self.cluster = cluster
        self.threads = threads
        # etcd's scripts start at term 0 over a base of term 1; a base of term 0 behaves the same.
        self.base = SnapshotMeta(index, 0, conf)
        self.stored = []
        self.newest = self.base
        self.append_work = []
        self.apply_work = []
        self.hard_state = None
        self.applied = []
        boot = BootState(
            hard_state=HardState(0, 0, index), snapshot=self.base, entries=[], applied=index, conf=conf
        )
        self.core = RaftCore(config, boot, random.Random(config.member_id))

    @property
    def id(self):
        return self.core.id

    def do(self, action):
        before = observe(self.core)
        try:
            return action(self.core)
        finally:
            check_state(self.core)
            check_step(before, self.core)
            self.cluster.history.check([self.core])

    def process_ready(self):
        self.core._state.commit_due = True  # etcd writes every moved commit index at once
        ready = self.do(lambda core: core.take_ready())
        state = self.core._state
        self.hard_state = (state.term, state.vote, state.log.committed)
        for message in ready.messages:
            self.cluster.post(message)
        if self.threads:
            self.append_work += [ready.append] if ready.append is not None else []
            self.apply_work += [ready.apply] if ready.apply is not None else []
            return
        if ready.append is not None:
            self.store(ready.append)
        if ready.apply is not None:
            self.apply(ready.apply)
        if ready.append is not None:
            for response in ready.append.responses:
                self.cluster.post(response)
            self.do(lambda core: core.on_append_done(ready.append.token))
        if ready.apply is not None:
            self.do(lambda core: core.on_apply_done(ready.apply.entries[-1].index, ready.apply.nbytes))

    def store(self, work):
        if work.snapshot is not None:
            self.base = self.newest = work.snapshot
            self.stored = []
        if work.entries:
            self.stored[work.entries[0].index - self.base.index - 1 :] = work.entries

    def apply(self, work):
        for entry in work.entries:
            self.applied.append(draw_entry(entry))
            if entry.kind is not EntryKind.NORMAL:
                self.do(lambda core, entry=entry: core.apply_conf(ConfChange.decode(entry.data)))
        last = work.entries[-1]
        self.newest = SnapshotMeta(last.index, last.term, self.core.conf)

    def process_append_thread(self):
        work = self.append_work.pop(0)
        self.store(work)
        for response in work.responses:
            self.cluster.post(response)
        self.cluster.post_own(self.id, lambda core: core.on_append_done(work.token))

    def process_apply_thread(self):
        work = self.apply_work.pop(0)
        self.apply(work)
        index = work.entries[-1].index
        self.cluster.post_own(self.id, lambda core: core.on_apply_done(index, work.nbytes))


class Cluster:
    """The state of one script, and its verbs."""

    def __init__(self):
        self.nodes: dict[int, Node] = {}
        self.bag: list[tuple[int, Message | Callable[[RaftCore], None]]] = []
        self.history = History()

    # ------------------------------------------------------------------ messages

    def post(self, message):
        if message.type is MessageType.SNAPSHOT:
            message.snapshot = self.nodes[message.from_].newest
        self.bag.append((message.to, message))

    def post_own(self, node_id, completion):
        self.bag.append((node_id, completion))

    def deliver(self, ids: Iterable[int], dropped: Iterable[int] = (), wanted: MessageType | None = None):
        """Hand over (or discard) what is in the bag for these members now; whether there was anything."""
        ids, dropped = list(ids), list(dropped)
        delivered = False
        for node_id in ids + dropped:
            chosen = []
            kept = []
            for to, item in self.bag:
                fits = to == node_id and (wanted is None or getattr(item, "type", None) is wanted)
                own = node_id in dropped and not isinstance(item, Message)
                (chosen if fits and not own else kept).append((to, item))
            self.bag = kept
            if node_id in dropped:
                continue
            for _, item in chosen:
                delivered = True
                self._hand_over(self.nodes[node_id], item)
        return delivered

    def _hand_over(self, node, item):
        if not isinstance(item, Message):
            node.do(item)
        elif item.type is MessageType.PROPOSE:
            self.propose(node, item.entries[0].data, hops=1)
        else:
            node.do(lambda core: core.step(item))

    def stabilize(self, ids):
        nodes = [self.nodes[node_id] for node_id in ids]
        for _ in range(ROUNDS_MAX):
            busy = False
            for node in nodes:
                node.core._state.commit_due = True
                if node.core.has_ready():
                    busy = True
                    node.process_ready()
            for node in nodes:
                busy |= self.deliver([node.id])
            for node in nodes:
                while node.append_work:
                    busy = True
                    node.process_append_thread()
            for node in nodes:
                while node.apply_work:
                    busy = True
                    node.process_apply_thread()
            if not busy:
                return
        raise AssertionError("never stable")

    # ------------------------------------------------------------------ proposals

    def propose(self, node, data, hops=0):
        """Propose; a follower passes it on, as etcd's core does."""
        try:
            node.do(lambda core: core.propose([data]))
        except ProposalDropped as dropped:
            if dropped.reason is DropReason.NOT_LEADER and dropped.leader and not hops:
                message = Message(MessageType.PROPOSE, dropped.leader, node.id)
                message.entries = [_Forwarded(data)]
                self.bag.append((dropped.leader, message))

    def propose_conf(self, node, change):
        try:
            node.do(lambda core: core.propose_conf(change))
        except ProposalDropped as dropped:
            if dropped.reason in (DropReason.CONF_PENDING, DropReason.CONF_INVALID):
                self.propose(node, b"")  # etcd puts an empty entry in its place

    # ------------------------------------------------------------------ building

    def add_nodes(self, count, args):
        conf = ConfState(voters=_ids(args.get("voters")), learners=_ids(args.get("learners")))
        index = int(args.get("index", ["0"])[0])
        for _ in range(count):
            node_id = len(self.nodes) + 1
            config = Config(
                member_id=node_id,
                election_ticks=3,
                heartbeat_ticks=1,
                append_bytes_max=UNLIMITED,
                append_entries_max=UNLIMITED,
                inflight_messages_max=int(args.get("inflight", [UNLIMITED])[0]),
                inflight_bytes_max=UNLIMITED,
                uncommitted_bytes_max=UNLIMITED,
                apply_bytes_max=int(args.get("max-committed-size-per-ready", [UNLIMITED])[0]),
                applying_bytes_max=UNLIMITED,
                pre_vote=_flag(args, "prevote"),
                check_quorum=_flag(args, "checkquorum"),
                withhold_votes=_flag(args, "checkquorum"),
                step_down_on_removal=_flag(args, "step-down-on-removal"),
            )
            threads = _flag(args, "async-storage-writes")
            self.nodes[node_id] = Node(self, config, conf, index, threads=threads)


class _Forwarded:
    """The one entry of a forwarded proposal."""

    def __init__(self, data):
        self.data = data


def _ids(words):
    return tuple(sorted(int(word) for word in words or ()))


def _flag(args, name):
    return name in args and args[name] in ([], ["true"])


# ---------------------------------------------------------------------- verbs


def _node_ids(cluster, block):
    ids = [int(word) for word in block.args if word.isdigit()]
    return ids or sorted(cluster.nodes)


def run_directive(cluster, block):
    words = [word for word in block.args if not block.args[word]]
    ids = [int(word) for word in words if word.isdigit()]
    node = cluster.nodes.get(ids[0]) if ids else None
    command = block.command
    if command == "add-nodes":
        cluster.add_nodes(ids[0], block.args)
    elif command in ("log-level", "raft-state", "raft-log", "status", "_breakpoint"):
        pass
    elif command == "stabilize":
        cluster.stabilize(_node_ids(cluster, block))
    elif command == "deliver-msgs":
        wanted = TYPES[block.args["type"][0]] if "type" in block.args else None
        cluster.deliver(ids, _ids(block.args.get("drop")), wanted)
    elif command == "process-ready":
        for node_id in ids:
            cluster.nodes[node_id].process_ready()
    elif command == "process-append-thread":
        for node_id in ids:
            cluster.nodes[node_id].process_append_thread()
    elif command == "process-apply-thread":
        for node_id in ids:
            cluster.nodes[node_id].process_apply_thread()
    else:
        run_verb(cluster, block, node, ids, words)


def run_verb(cluster, block, node, ids, words):
    args = block.args
    match block.command:
        case "campaign":
            node.do(lambda core: core.campaign())
        case "propose":
            cluster.propose(node, words[1].encode())
        case "propose-conf-change":
            steps = [ConfStep(STEP_KINDS[w[0]], int(w[1:])) for line in block.input for w in line.split()]
            transition = args.get("transition", ["auto"])[0]
            how = ConfTransition(("auto", "implicit", "explicit").index(transition))
            cluster.propose_conf(node, ConfChange(tuple(steps), how))
        case "tick-heartbeat":
            node.do(lambda core: core.tick())
        case "tick-election":
            for _ in range(3):
                node.do(lambda core: core.tick())
        case "set-randomized-election-timeout":
            node.core._state.election_timeout = int(args["timeout"][0])
        case "transfer-leadership":
            source, target = int(args["from"][0]), int(args["to"][0])
            cluster.nodes[source].do(lambda core: core.transfer_leader(target))
        case "forget-leader":
            node.do(lambda core: core.forget_leader())
        case "report-unreachable":
            node.do(lambda core: core.report_unreachable(ids[1]))
        case "send-snapshot":
            message = Message(MessageType.SNAPSHOT, ids[1], node.id, node.core.term, snapshot=node.newest)
            cluster.post(message)
        case "compact":
            node.do(lambda core: core.compact(ids[1]))
            dropped = ids[1] - node.base.index
            node.base = SnapshotMeta(ids[1], node.stored[dropped - 1].term, node.base.conf)
            del node.stored[:dropped]
        case other:
            raise AssertionError(f"unknown verb {other}")


# ---------------------------------------------------------------------- comparing


def draw_state(cluster):
    lines = []
    for node_id, node in sorted(cluster.nodes.items()):
        core = node.core
        voter = "Voter" if core._state.tracker.is_voter(node_id) else "Non-Voter"
        lines.append(f"{node_id}: {ROLES[core.role]} ({voter}) Term:{core.term} Lead:{core.leader}")
    return lines


def draw_log(node):
    if not node.stored:
        return [f"log is empty: first index={node.base.index + 1}, last index={node.base.index}"]
    return [draw_entry(entry) for entry in node.stored]


def draw_status(node):
    lines = []
    for peer in node.core.status().peers:
        line = f"{peer.member}: State{peer.state.value.capitalize()} match={peer.match} next={peer.next}"
        line += " learner" if peer.is_learner else ""
        line += " paused" if peer.paused else ""
        line += f" pendingSnap={peer.pending_snapshot}" if peer.pending_snapshot else ""
        line += "" if peer.recent_active else " inactive"
        line += f" inflight={peer.inflight_messages}" if peer.inflight_messages else ""
        lines.append(line)
    return lines


def printed_readies(block):
    """(node, its last printed hard state, its printed committed entries) of one directive."""
    hard_states, committed = {}, {}
    args = [int(word) for word in block.args if word.isdigit()]
    node_id = args[0] if args else 0
    section = ""
    for line in (raw.strip() for raw in block.expected):
        if header := re.match(r"> (\d+) ", line):
            node_id = int(header[1])
            section = ""
        elif line.startswith("HardState "):
            fields = dict(field.split(":") for field in line.split()[1:])
            values = (fields["Term"], fields.get("Vote", 0), fields.get("Commit", 0))
            hard_states[node_id] = tuple(int(value) for value in values)
        elif line.endswith(":") and " " not in line:
            section = line
        elif section == "CommittedEntries:" and (entry := re.match(r"\d+/\d+ Entry", line)):
            assert entry
            line = re.sub("EntryConfChangeV2", "EntryConfChange", line)
            committed.setdefault(node_id, []).append(line)
    return hard_states, committed


def compare(cluster, block):
    expected = [line.replace("EntryConfChangeV2", "EntryConfChange").rstrip() for line in block.expected]
    node_id = next((int(word) for word in block.args if word.isdigit()), 0)
    if block.command == "raft-state":
        assert draw_state(cluster) == expected
    elif block.command == "raft-log":
        assert draw_log(cluster.nodes[node_id]) == expected
    elif block.command == "status":
        assert draw_status(cluster.nodes[node_id]) == expected
    elif block.command in ("stabilize", "process-ready"):
        hard_states, committed = printed_readies(block)
        for member, hard_state in hard_states.items():
            assert cluster.nodes[member].hard_state == hard_state, f"hard state of {member}"
        for member, entries in committed.items():
            node = cluster.nodes[member]
            handed_out = node.applied + [draw_entry(e) for work in node.apply_work for e in work.entries]
            missing = [entry for entry in entries if entry not in handed_out]
            assert not missing, f"not committed at {member}: {missing}"


@pytest.mark.parametrize("name", FILES)
def test_script(name, directives):
    cluster = Cluster()
    compared = 0
    for block in directives(f"raft-interaction/{name}"):
        run_directive(cluster, block)
        try:
            compare(cluster, block)
        except AssertionError as difference:
            raise AssertionError(f"{name}:{block.line}: {block.command} {block.args}\n{difference}") from None
        compared += block.command in ("raft-state", "raft-log", "status", "stabilize", "process-ready")
    assert compared, "nothing was compared"


def test_every_script_is_replayed_or_named(directives):
    folder = Path(os.environ["KVSTORE_TESTDATA"]) / "raft-interaction"
    scripts = {path.name for path in folder.glob("*.txt")}
    assert scripts == {*FILES, *NOT_OFFERED}


def test_a_difference_is_noticed(directives, monkeypatch):
    """Negative control: a leader that ignores rejections fails a script."""
    monkeypatch.setattr("raft.core.progress.Progress.back_off", lambda self, rejected, hint: False)
    with pytest.raises(AssertionError):
        test_script("probe_and_replicate.txt", directives)
