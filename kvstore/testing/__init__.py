"""The kit for tests against a simulated cluster: your own code, or the store itself, under faults.

    async def story() -> None:
        cluster = SimulatedCluster(seed=7, machine=SimulatedEngine)
        await cluster.start_all()
        await cluster.wait_for_leader()
        reply = await cluster.connect().call(PUT, request)

    run_virtual(story())

What runs is the product: its handlers, state machine, event loop, consensus core and write-ahead log, three
members (or `size`) in one process. Network, disks and clock are in-memory fakes. What the kit guarantees:

* *Virtual time.* `run_virtual` is `asyncio.run` on a loop that begins at 0.0 and puts its clock forward
  instead of waiting: a minute of timeouts passes in milliseconds. Code under test uses the loop's clock and
  `asyncio.sleep`, no threads, sockets or real clocks. A program that waits without any timer ends in
  `LoopStalled` instead of hanging.
* *Seeds.* All randomness of the kit (delays, election timeouts, what a power cut leaves) comes from the
  cluster's `seed`. A program that draws its own choices from a seed takes the same steps every time.
* *Calls.* `connect()` returns what `kvstore.client.Connection` is to code written against `Caller` or
  `StreamCaller`: the same `call(method, request)` and `open(method)`, errors and failover to another member;
  `connect(2)` calls member 2 only. A write whose member dies fails with `OutcomeUnknown`, like one whose
  connection broke; a read is retried elsewhere. All methods are served, so `Watching`, `Session`,
  `keep_alives`, `wait_for` (locks, elections) and `observe` of `kvstore.client` run over it. There is no TLS.
* *Faults.* `partition([1], [2, 3])` drops messages between the groups until `heal()`; clients reach both
  sides. `crash(2)` is a power cut of one member: its disk loses an arbitrary part of the un-synced writes;
  with `power=False` it is a `kill -9`. `power_cut()` hits all members at once. `start(2)` restarts a member
  from its disk, `stop(2)` shuts it down cleanly. Delay, loss and duplication of messages are set through
  `network.conditions(source, target)`.
* *The end.* `stop_all()` fails if the loop saw an uncaught exception.

With the default `LedgerMachine` instead of the engine a cluster keeps a bare list of commands, for tests
of replication itself. The seeded campaigns that judge the store (`python -m kvstore.testing`) are not part of
this interface: `kvstore.testing.nodes` plays one run, `kvstore.testing.campaign` many.
"""

from kvstore.testing.simulated_connection import SimulatedConnection
from kvstore.testing.simulation import LedgerMachine, SimulatedCluster, SimulatedEngine, SimulatedMember
from kvstore.testing.virtual_loop import LoopStalled, VirtualTimeLoop, run_virtual

__all__ = [
    "LedgerMachine",
    "LoopStalled",
    "SimulatedCluster",
    "SimulatedConnection",
    "SimulatedEngine",
    "SimulatedMember",
    "VirtualTimeLoop",
    "run_virtual",
]
