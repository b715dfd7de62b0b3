"""Loaded by Python before a member's own code: wall-clock time is off by what a file says.

Only what a Python process reads of the wall clock changes; the monotonic clock is left alone.
"""

from __future__ import annotations

import os
import time

_FILE = os.environ.get("KVSTORE_SKEW_FILE", "")
_true_time = time.time


def _skewed() -> float:
    with open(_FILE) as file:  # at every reading: what is said holds from then on
        return _true_time() + float(file.read())


if _FILE:
    time.time = _skewed
    time.time_ns = lambda: int(_skewed() * 1e9)
