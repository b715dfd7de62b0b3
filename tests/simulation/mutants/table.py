"""Every mutant, by number: the sixty of the project's list, and 61 to 66 of its own design."""

from __future__ import annotations

from tests.simulation.mutants import core, disk, engine, leases, node, waiting, watching

_NODES = (*disk.MUTANTS, *node.MUTANTS, *engine.MUTANTS, *leases.MUTANTS, *watching.MUTANTS)

MUTANTS = tuple(sorted((*core.MUTANTS, *_NODES, *waiting.MUTANTS)))
