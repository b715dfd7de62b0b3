"""Every planted bug, by number: the sixty of the project's list, and 61 to 66 of its own design."""

from __future__ import annotations

from tests.simulation.mutants import core, disk, driver, engine, leases, waiting, watching

_NODES = (*disk.MUTANTS, *driver.MUTANTS, *engine.MUTANTS, *leases.MUTANTS, *watching.MUTANTS)

MUTANTS = tuple(sorted((*core.MUTANTS, *_NODES, *waiting.MUTANTS)))
