"""Rules for the whole suite: what may be skipped, and what may run beside what.

With STRICT=1 (continuous integration) a skip is a failure: a judge that did not sit has not agreed.
Tests that start processes or measure time are kept on one worker, so that they do not starve each other.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

PROCESS_FOLDERS = frozenset(
    {"cli", "compatibility", "conformance", "devcluster", "differential", "jepsen", "packaging", "processes"}
)
"""Folders of tests/ whose tests start processes: one worker runs them all, in order."""


def is_strict() -> bool:
    return os.environ.get("STRICT", "") == "1"


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A script that starts the suite with `&` or nohup; what tests start, and interrupt, would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "slow: takes more than ten seconds")
    config.addinivalue_line("markers", "network: needs a package index")
    if is_strict() and not os.environ.get("KVSTORE_TESTDATA"):
        raise pytest.UsageError("STRICT=1 needs KVSTORE_TESTDATA, the folder of third-party test data")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    for item in items:
        package = item.path.relative_to(tests).parts[0]
        if package in PROCESS_FOLDERS and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group("processes"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if is_strict() and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped under STRICT=1: {call.excinfo and call.excinfo.value}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if is_strict() and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} skipped under STRICT=1: {report.longrepr}"
    return report
