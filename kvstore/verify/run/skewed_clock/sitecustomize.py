"""Loaded by Python before a member's own code: wall-clock time is off by what a file says.

Only what a Python process reads of the wall clock changes; the monotonic clock is left alone. The file
beside it, with `.seen`, shows the shift that was last read.
"""

from __future__ import annotations

import os
import time

_FILE = os.environ.get("KVSTORE_SKEW_FILE", "")
_LOOK_EVERY_S = 0.05
_true_time = time.time
_monotonic = time.monotonic
_shift = 0.0
_looked = 0.0


def _look() -> float:
    global _shift, _looked  # this module stands in for the kernel's clock, which is one
    now = _monotonic()
    if now - _looked >= _LOOK_EVERY_S:
        _looked = now
        try:
            with open(_FILE) as file:
                shift = float(file.read() or 0)
            if shift != _shift:
                with open(_FILE + ".seen", "w") as seen:
                    seen.write(f"{shift}\n")
            _shift = shift
        except (OSError, ValueError):
            return _shift  # the file is just being written
    return _shift


def _skewed() -> float:
    return _true_time() + _look()


def _true_and_looking() -> float:
    """The monotonic clock as it is; members ask it all the time, so the file is noticed soon."""
    _look()
    return _monotonic()


if _FILE:
    time.time = _skewed
    time.monotonic = _true_and_looking
    time.time_ns = lambda: int(_skewed() * 1e9)
