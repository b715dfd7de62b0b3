"""Callbacks spread over loop iterations: in order, all of them, a bounded number in each."""

from __future__ import annotations

from kvstore.watch.paced_callbacks import CALLBACKS_PER_ITERATION_MAX, PacedCallbacks


class Loop:
    """Runs the callbacks added before an iteration, as an event loop does."""

    def __init__(self) -> None:
        self.queue: list = []

    def iteration(self) -> None:
        queue, self.queue = self.queue, []
        for callback in queue:
            callback()


def test_many_are_spread_in_order_and_none_is_lost() -> None:
    loop, ran = Loop(), []
    iterations = PacedCallbacks(lambda callback: loop.queue.append(callback))
    count = 3 * CALLBACKS_PER_ITERATION_MAX + 7
    for number in range(count):
        iterations.soon(lambda number=number: ran.append(number))
    seen = []
    while loop.queue:
        before = len(ran)
        loop.iteration()
        seen.append(len(ran) - before)
        if len(seen) == 2:
            iterations.soon(lambda: ran.append(count))  # who comes later waits for those before
    assert ran == list(range(count + 1))
    assert max(seen) == CALLBACKS_PER_ITERATION_MAX


def test_a_lone_callback_runs_in_the_next_iteration() -> None:
    loop, ran = Loop(), []
    iterations = PacedCallbacks(lambda callback: loop.queue.append(callback))
    for number in range(3):
        iterations.soon(lambda number=number: ran.append(number))
        loop.iteration()
        assert ran[-1] == number
