"""The kit for testing against the store: virtual time, simulated networks and disks, one seed per run."""

from kvstore.testing.simulation import LedgerMachine, SimulatedCluster, SimulatedMember
from kvstore.testing.virtual_loop import NothingWillHappen, VirtualTimeLoop, run_virtual

__all__ = [
    "LedgerMachine",
    "NothingWillHappen",
    "SimulatedCluster",
    "SimulatedMember",
    "VirtualTimeLoop",
    "run_virtual",
]
