"""A failing seed, shortened and written out as a test file."""

from __future__ import annotations

from raft.sim import as_test, generate, run, shrink


def shrink_seed(level: str, seed: int, length_s: float) -> str:
    """The text of a pytest file that fails for as long as the shortened run breaks its promise.

    Raises ValueError when the seed breaks none.
    """
    schedule = generate(seed, seconds=int(length_s))
    invariant = run(schedule).invariant
    if invariant is None:
        raise ValueError(f"seed {seed} keeps every promise")
    return as_test(shrink(schedule, invariant), invariant, f"{level}_seed_{seed}")
