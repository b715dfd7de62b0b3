"""The kit for tests against a simulated cluster: your own code, or the store itself, under faults.

    async def story() -> None:
        cluster = SimulatedCluster(seed=7, machine=SimulatedEngine)
        await cluster.start_all()
        await cluster.wait_for_leader()
        reply = await cluster.connect().call(PUT, request)

    run_virtual(story())

What runs is the product: its handlers, state machine, driver, consensus core and write-ahead log, three
members (or `size`) in one process. Network, disks and clock are twins. What the kit promises:

* *Virtual time.* `run_virtual` is `asyncio.run` on a loop that begins at 0.0 and puts its clock forward
  instead of waiting: a minute of timeouts passes in milliseconds. Code under test uses the loop's clock and
  `asyncio.sleep`, no threads, sockets or real clocks. A program in which nothing can happen any more ends
  in `NothingWillHappen` instead of hanging.
* *Seeds.* Everything the kit draws (delays, election timeouts, what a power cut leaves) comes from the
  cluster's `seed`; a program that draws its own choices from one too takes the same steps every time.
* *Calls.* `connect()` gives what `kvstore.client.Connection` is to code that makes unary calls: the same
  `call(method, request)`, errors and moving on to another member; `connect(2)` asks member 2 only. A write
  whose member dies ends in `OutcomeUnknown`, as one whose connection broke; a read moves on. Streams
  (watches, renewals) are not offered, nor TLS.
* *Faults.* `partition([1], [2, 3])` is silence between members until `heal()`; clients reach either side.
  `crash(2)` kills a member and cuts its power: its disk loses an arbitrary part of what was not synced;
  with `power=False` it is a `kill -9`. `power_cut()` is that of all members at once. `start(2)` has a
  member begin again from what its disk holds, `stop(2)` ends it in good order. Slower links, losses and
  repetitions are `network.conditions(source, target)`.
* *The end.* `stop_all()` fails when anything was thrown in the loop that nobody caught.

With the default `LedgerMachine` instead of the engine a cluster keeps a bare list of commands, for tests
of replication itself. How the store is judged by seeded campaigns (`python -m kvstore.testing`) is no
part of this face: `kvstore.testing.nodes` plays one run, `kvstore.testing.campaign` many.
"""

from kvstore.testing.services import SimulatedConnection
from kvstore.testing.simulation import LedgerMachine, SimulatedCluster, SimulatedEngine, SimulatedMember
from kvstore.testing.virtual_loop import NothingWillHappen, VirtualTimeLoop, run_virtual

__all__ = [
    "LedgerMachine",
    "NothingWillHappen",
    "SimulatedCluster",
    "SimulatedConnection",
    "SimulatedEngine",
    "SimulatedMember",
    "VirtualTimeLoop",
    "run_virtual",
]
