"""Exit codes and the error that carries one."""

from __future__ import annotations

from enum import IntEnum

import click


class ExitCode(IntEnum):
    """Of the client verbs: etcdctl's (`pkg/cobrautl`).

    INTERRUPTED is that of a watch which the server cancels; a command that a signal interrupts dies of it.
    """

    OK = 0
    ERROR = 1
    BAD_CONNECTION = 2
    INVALID_INPUT = 3
    BAD_FEATURE = 4
    INTERRUPTED = 5
    IO = 6
    BAD_ARGUMENTS = 128


class ServerExitCode(IntEnum):
    """Of `kvstore server`. 74 besides: the log's disk hung (`kvstore.app`)."""

    STOPPED = 0
    """By SIGINT or SIGTERM; a second signal ends the process at once, by that signal."""
    CANNOT_START = 1
    """Configuration, data directory, port."""
    USAGE = 2
    """The flags cannot be read."""
    FAILED = 3
    """While it ran, of a disk; it acknowledged nothing from then on."""
    STOP_ABORTED = 4
    """Stopping took too long."""


class CommandError(click.ClickException):
    """Ends a command with `Error: <text>`, or without a word if the text is empty, and an exit code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def bad_arguments(text: str) -> CommandError:
    return CommandError(ExitCode.BAD_ARGUMENTS, text)


def invalid_input(text: str) -> CommandError:
    return CommandError(ExitCode.INVALID_INPUT, text)


def bad_feature(text: str) -> CommandError:
    return CommandError(ExitCode.BAD_FEATURE, text)
