"""How signals end a command: it undoes what it must, then dies of the signal, as etcdctl does.

Dying matters to a shell, which leaves its loop only when the command died of the interrupt; no exit code can
say that. Most commands have nothing to undo, and leave SIGINT and SIGTERM to the kernel, which loses none and
is never late. What is ignored from the start (`nohup`, `&` in a script) stays ignored.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeVar

Result = TypeVar("Result")

SIGNALS = (signal.SIGINT, signal.SIGTERM)

SIGNALLED = 128
"""Plus the signal's number: the exit code where a signal does not kill, as in a container's first process."""


class Interrupted(KeyboardInterrupt):
    """A signal came, and what it interrupted is undone; ends the process by that signal.

    A KeyboardInterrupt, since asyncio lets no other exception out of its loop.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def number_of(interrupt: KeyboardInterrupt) -> int:
    """The signal behind it; Python's own handler raises for SIGINT alone."""
    return interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT


def die_of(number: int) -> NoReturn:
    """End the process by a signal, whatever was done about that signal before."""
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))
    signal.raise_signal(number)
    sys.exit(SIGNALLED + number)


def _raise(number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


@contextmanager
def undoing() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt in the block where they would kill, so that its
    clean-up runs. For code that runs or is woken all the time: a loop that only waits may oversleep one.
    Within it, asyncio runs by `run_undoing`: SIGTERM raised inside a loop would cancel every task at once,
    with them those that the clean-up waits for.
    """
    changed = []
    if threading.current_thread() is threading.main_thread():  # no other may
        for number, handler in zip(SIGNALS, (signal.default_int_handler, _raise), strict=True):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, handler)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def caught(on_signal: Callable[[int], object], *, ignored_too: bool) -> Iterator[None]:
    """Call `on_signal` with the number of each SIGINT and SIGTERM, in the running loop, during the block.

    The loop's own handlers wake it. One of Python's (`asyncio.run` has one for SIGINT) may not: a signal that
    comes just before the loop goes to sleep, or on another thread, is handled at the next event only.
    `ignored_too` also catches what was ignored from the start.
    """
    import asyncio  # takes as long as the rest of a short command, which runs no loop

    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    chosen = [number for number in SIGNALS if ignored_too or before[number] is not signal.SIG_IGN]
    for number in chosen:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in chosen:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])


def run_undoing(work: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run` of work that has something to undo: SIGINT and SIGTERM cancel it.

    Raises Interrupted once the work has ended, whatever came of it.
    """
    import asyncio  # see `caught`

    came: list[int] = []

    async def cancellable() -> Result:
        task = asyncio.current_task()
        assert task is not None

        def cancel(number: int) -> None:
            came.append(number)
            task.cancel()

        with caught(cancel, ignored_too=False):
            return await work

    try:
        result = asyncio.run(cancellable())
    except BaseException:
        if came:
            raise Interrupted(came[0]) from None
        raise
    if came:
        raise Interrupted(came[0])
    return result
