"""Raft consensus, without knowing what is agreed upon.

The contract, low to high (each room imports only from rooms before it):

`raft.core`
    Decides. A pure, deterministic object: messages, ticks and proposals go in, effects come out.
    It owns no clock, no disk, no socket and no source of chance that was not handed to it.

`raft.storage`
    Remembers. The write-ahead log is the promise: a vote or an acknowledgement leaves a member
    only after the log holds what it promises. The state file is a written-behind image of the
    state machine which the log can always bring up to date.

`raft.transport`
    Carries. Best effort, in order per lane, never deciding; it tells a dead peer from a silent
    one by evidence (an exchange of hellos), never by a timer.

`raft.node`
    Does. One loop owns the core: drain what arrived, tick if due, take what is ready, then
    *send* what may leave at once, *persist*, and only when that is durable send the promises,
    *apply* what is committed, and settle whoever waits.

What a caller must provide is a `StateMachine` (`raft.node.state_machine`): a deterministic function from
batches of opaque commands to outcomes. What a caller gets is `propose` and `read_barrier`, each
answered exactly once, and never with a guess: an outcome, a certain "not applied", or an honest
"unknown".

Importing this package loads none of the rooms; `raft.core` in particular pulls in neither asyncio
nor gRPC.
"""
