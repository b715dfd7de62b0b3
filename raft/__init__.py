"""Raft consensus as a library: a deterministic core, and the storage, transport and node around it.

Raft keeps a replicated state machine: the members of a cluster agree on one log of entries, and each member
applies the committed entries in log order. The algorithm is that of "In Search of an Understandable
Consensus Algorithm" (Ongaro and Ousterhout, 2014) and of Ongaro's thesis. The core has the shape of
etcd-io/raft with asynchronous storage writes.

What is here:

* leader election with pre-vote, CheckQuorum and withheld votes; leadership transfer
* log replication, pipelined and batched, with (term, index) back-off after a conflict
* linearizable reads by ReadIndex, also on followers
* membership changes: single steps, joint consensus, learners
* log compaction and snapshots
* a node that adds durability, forwarding to the leader, and exactly one answer for each request

The core does no I/O. It has no clock, no thread and no randomness of its own. Inputs are messages, ticks and
proposals. The output is a `Ready`: work for the caller. So the same inputs always give the same outputs, and
a test can own time, the network and the disk.


Usage
-----

Three members in one process, with dicts and lists where a real member has a disk and a network:

>>> import random
>>> from raft.core import EMPTY_HARD_STATE, EMPTY_SNAPSHOT, BootState, Config, ConfState, RaftCore, Role

>>> class Member:
...     def __init__(self, member_id):
...         boot = BootState(hard_state=EMPTY_HARD_STATE, snapshot=EMPTY_SNAPSHOT, entries=(), applied=0,
...                          conf=ConfState(voters=(1, 2, 3)))
...         self.core = RaftCore(Config(member_id=member_id), boot, random.Random(member_id))
...         self.log, self.hard_state = [], boot.hard_state  # on disk in a real member
...         self.state, self.reads = [], {}
...
...     def execute(self, ready):
...         send(ready.messages)                             # 1. send: before the disk is touched
...         if (work := ready.append) is not None:
...             if work.entries:                             # 2. persist: a conflicting tail goes
...                 self.log[work.entries[0].index - 1:] = work.entries
...             self.hard_state = work.hard_state or self.hard_state
...             send(work.responses)                         # 3. respond: now it is durable
...             self.core.on_append_done(work.token)
...         if (work := ready.apply) is not None:            # 4. apply, in log order
...             self.state += [entry.data for entry in work.entries if entry.data]
...             self.core.on_apply_done(work.entries[-1].index, work.nbytes)  # 5. complete
...         self.reads.update(ready.read_states)

>>> network = []
>>> send = network.extend
>>> members = {member_id: Member(member_id) for member_id in (1, 2, 3)}

>>> def run():
...     while network or any(member.core.has_ready() for member in members.values()):
...         for member in members.values():
...             member.execute(member.core.take_ready())
...         while network:
...             message = network.pop(0)
...             members[message.to].core.step(message)

Elect a leader. Ticks are the only time; a member campaigns after a silence drawn from its own generator:

>>> while not any(member.core.role is Role.LEADER for member in members.values()):
...     for member in members.values():
...         member.core.tick()
...     run()
>>> leader = next(member for member in members.values() if member.core.role is Role.LEADER)
>>> follower = members[leader.core.id % 3 + 1]
>>> leader.core.term, follower.core.leader == leader.core.id
(1, True)

Propose two entries. Index 1 holds the no-op of the new leader. `propose` only names the entries; they are
committed when they are applied under these ids:

>>> leader.core.propose([b"x = 1", b"y = 2"])
[EntryId(term=1, index=2), EntryId(term=1, index=3)]
>>> run()
>>> [member.state for member in members.values()] == 3 * [[b"x = 1", b"y = 2"]]
True

Read at the follower. The leader notes its commit index, confirms with a quorum that it still leads, and
answers with that index. The follower serves the read from its own state once it has applied the index:

>>> follower.core.read_index(context=7)
>>> run()
>>> follower.reads, follower.core.applied >= follower.reads[7]
({7: 3}, True)


The duties of the caller, in order
----------------------------------

One caller at a time feeds the core (`step`, `tick`, `propose`, `read_index`, ...), then takes the `Ready` and
executes all of it. A take consumes: a Ready is never dropped and never taken twice.

1. Send `Ready.messages`. They may leave at once, also while the disk still writes. The network may lose,
   repeat and reorder them. A message of type SNAPSHOT is not sent; it is a request to the caller (below).
2. Persist `Ready.append`: snapshot, entries and hard state, in the order of takes. Writing entries discards
   every stored entry at or above the first new index. Sync when `must_sync` is set.
3. Respond: when that work is durable, send its `responses`. They are votes and acknowledgements, and must
   never be sent earlier. Then call `on_append_done(token)`. After a failed write the process must end: what
   is on the disk is unknown.
4. Apply `Ready.apply` to the state machine, in log order. For an entry that changes the membership call
   `apply_conf` in the same order (the example has none).
5. Complete: call `on_apply_done(index, nbytes)`. Serve a read from `Ready.read_states` once its index is
   applied; begin the reads in `Ready.dropped_reads` anew.

Call `tick` at a fixed interval. After a pause deliver one or two ticks, not the backlog, and the waiting
messages first.

Snapshots travel outside of the core. The caller on the leader brings the member that SNAPSHOT names a
snapshot at or above the base of the log, and calls `report_snapshot`. The caller on the receiver steps the
message, with the metadata of the snapshot that came, only when the bytes are durable. The core answers with
`AppendWork.snapshot` if it wants the snapshot; that work is done when the log is marked and the state
machine holds the snapshot.


What may overlap
----------------

* Messages leave while the local disk still writes. The leader may commit an entry that its own disk does not
  hold yet, once a quorum of the others does; only applying waits for the local disk.
* Several pieces of append work may be in flight, and one sync may cover several (group commit). They
  complete first in, first out; the completion of a later token includes the earlier ones.
* Apply work runs beside append work. Several pieces may be in flight, within `Config.applying_bytes_max`.
* New inputs may be fed at any time between two calls. Reads of all members share confirmation rounds.


What is certain when
--------------------

* `propose` returned: the entries are in the leader's memory, nothing more. They may be lost.
* `on_append_done` was called: they are durable here. They may still be overwritten by another leader.
* An entry is in `ApplyWork`: it is committed and durable here. It is never lost, and each member applies it.
* Another entry was applied at the index of an `EntryId`, or an entry of a later term was applied at or below
  it: the entry of that id is lost for ever. Only then may it be proposed again without being applied twice.
* `applied >= ReadState.index`: the local state holds every write that was acknowledged anywhere before
  `read_index` was called. No leader lease is involved, so no clock can break this.
* `Ready.soft_state` and `RaftCore.leader` are hints: another member may lead by now.


Messages
--------

`raft.core.MessageType` lists the kinds; their numbers go over the wire. Every message carries the term of its
sender, except PRE_VOTE and the grant of one, which carry the term asked about. A later term makes the
receiver a follower, unless it withholds its vote.

APPEND
    Leader to follower or learner. Carries entries and the commit index, after an entry that must match. An
    empty one probes what the other log holds, or only announces the commit index (commit broadcast).
APPEND_RESPONSE
    Follower or learner to leader, when the entries are durable. Acknowledges its log up to `index`, or
    rejects with a hint where the two logs may agree. Also reports the present term to a leader of an
    earlier one.
VOTE
    Candidate to voters. Asks for the vote of a term. A member that heard a leader within an election timeout
    leaves this and a PRE_VOTE unanswered, unless a leadership transfer ordered the campaign.
VOTE_RESPONSE
    Voter to candidate, when its vote is durable. Grants or refuses; names an entry known to be committed.
PRE_VOTE
    Pre-candidate to voters. Asks whether it could win the next term. Changes no term and no vote.
PRE_VOTE_RESPONSE
    Voter to pre-candidate. Grants or refuses, and binds the voter to nothing.
HEARTBEAT
    Leader to all others. Holds off elections, and carries the commit index as far as the follower's log is
    known to match. With a read round in `context` it goes to the voters and asks them to confirm leadership.
HEARTBEAT_RESPONSE
    Follower to leader. Counts for CheckQuorum, and for the read round in `context`.
SNAPSHOT
    Leader to a member that needs compacted entries. Reaches the caller as a snapshot request, and is stepped
    at the receiver when the snapshot is durable there.
TIMEOUT_NOW
    Leader to the member chosen to succeed it. Orders an election at once, without a pre-vote.
TRANSFER_LEADER
    Follower to leader. Passes on a request that the member in `context` should lead.
READ_INDEX
    Follower to leader. Asks for an index at which a read that waits now is linearizable.
READ_INDEX_RESPONSE
    Leader to that follower, when a quorum has confirmed that it leads. Names the index. A member that does
    not lead, or no longer, rejects.
PROPOSE
    Follower to leader, and the leader's refusal back. The core ignores it: `raft.node` forwards membership
    changes with it, and test harnesses proposals.


Layers
------

`raft.core`
    Consensus. Pure: imports none of asyncio, gRPC, `random` and `time`.
`raft.storage`
    Durability: a write-ahead log with group commit, and a backend in SQLite that holds the state machine's
    checkpoint behind the log. In-memory implementations lose at a crash what was not synced.
`raft.transport`
    Messages between members: best effort, in order within a lane, over gRPC or in memory. A handshake,
    never a timer, distinguishes a dead process from an unreachable one.
`raft.node`
    One member: the event loop that owns a core and performs its effects, forwards commands and membership
    changes to the leader, and completes each request exactly once: with an outcome, with a certain "not
    applied", or with an honest "unknown". The caller supplies the state machine.
`raft.sim`
    Whole clusters of cores in one thread and from one seed, with faults and with every invariant checked.

Each package imports only from those above it. `raft` itself loads none of them.

The ideas, one screen each, are in docs/concepts: log-pointers, read-index, snapshots, leases,
locks-and-fencing-tokens, membership, forwarding. docs/ARCHITECTURE.md shows how the packages work together.
"""
