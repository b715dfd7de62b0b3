"""A simulated cluster of cores: one seed is one history, checked after each event.

`raft.core` is the product's; node, disk, network, clock and clients are models that keep the core's
contract and fail in every way it allows. No asyncio, no files, no wall clock: a minute of
a cluster's life takes about a second.

* `generate(seed)` makes a random `Schedule`, `quiet(seed)` one in which nothing goes wrong; a schedule
  is data and travels as JSON.
* `run(schedule)` plays it and returns a `Report`; `report.invariant` names the violated invariant or is None.
* `shrink(schedule, invariant)` shortens a failing schedule, `as_test` makes a test file of it.
"""

from raft.sim.cluster import Report, run
from raft.sim.probes import PROBES, UNREACHED
from raft.sim.schedule import Fault, Op, Schedule, generate, quiet
from raft.sim.shrink import as_test, shrink

__all__ = [
    "PROBES",
    "UNREACHED",
    "Fault",
    "Op",
    "Report",
    "Schedule",
    "as_test",
    "generate",
    "quiet",
    "run",
    "shrink",
]
