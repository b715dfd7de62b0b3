"""The standard streams of a command: always there, with errors that name them.

A shell may close one (`>&-`). Then Python has None for it, and the next file or socket gets its number,
so that output would go there. So a missing stream is `/dev/null` here, as in Go since 1.20.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO

NAMES = ("/dev/stdin", "/dev/stdout", "/dev/stderr")
"""By descriptor; how errors name them, as etcdctl's do."""


class _NamedOutput(io.FileIO):
    """Writes that fail say to which stream, so that its reader's end is not taken for a peer's."""

    def write(self, data: Any, /) -> int:  # None, too, where the descriptor does not block
        try:
            return super().write(data)
        except OSError as error:
            raise type(error)(error.errno, error.strerror, NAMES[self.fileno()]) from None


def prepare() -> None:
    """Open what is missing, and name both outputs. To be called before any other file is opened."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
        stream: TextIO | None = getattr(sys, name)
        if descriptor == 0:
            sys.stdin = stream or open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115  lives as long as the process
        else:
            setattr(sys, name, _output(descriptor, stream))


def _output(descriptor: int, before: TextIO | None) -> TextIO:
    raw = _NamedOutput(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding if before else "utf-8",
        errors=before.errors if before else "backslashreplace",
        line_buffering=descriptor == 2 or raw.isatty(),
    )


def is_output(error: OSError) -> bool:
    """True when it was one of the outputs of this process that could not be written."""
    return error.filename in NAMES


def discard_output(descriptor: int) -> None:
    """Forget what could not be written, lest the interpreter try again at its end and complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
