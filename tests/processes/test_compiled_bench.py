"""The reading of the load generator's report, and what a row makes of the rounds."""

from __future__ import annotations

import pytest

from bench.clusters import ClusterError
from bench.compiled import PEER, Load, Result, parse, row

REPORT = """
Summary:
  Total:	0.8137 secs.
  Slowest:	0.0311 secs.
  Requests/sec:	12289.1234

Latency distribution:
  10% in 0.0021 secs.
  50% in 0.0048 secs.
  99% in 0.0193 secs.
  99.9% in 0.0302 secs.
"""


def test_a_report_is_read() -> None:
    assert parse(REPORT) == (12289.1234, pytest.approx(4.8), pytest.approx(19.3))


@pytest.mark.parametrize("text", ["", REPORT + "\nError distribution:\n  [12]\tEOF\n"])
def test_a_report_without_figures_or_with_failed_calls_is_refused(text: str) -> None:
    with pytest.raises(ClusterError):
        parse(text)


def test_ratios_are_formed_within_each_round() -> None:
    def result(speed: float) -> Result:
        return Result(speed, 1000 / speed, 0.0, {"leader": 1.0, "follower": 1.0}, 0.0)

    rounds = [{PEER: result(100.0), "ngh2": result(150.0)}, {PEER: result(10.0), "ngh2": result(15.0)}]
    assert row(Load("put", 64), "leader", rounds)["sides"]["ngh2"]["ratio"] == 1.5
