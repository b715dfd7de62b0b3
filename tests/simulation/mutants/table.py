"""Every planted bug, by number: the sixty of the project's list, and 61 to 66 of its own design."""

from __future__ import annotations

from tests.simulation.mutants import core, disk, driver, engine, leases, waiting

MUTANTS = tuple(
    sorted(
        (*core.MUTANTS, *disk.MUTANTS, *driver.MUTANTS, *engine.MUTANTS, *leases.MUTANTS, *waiting.MUTANTS)
    )
)
