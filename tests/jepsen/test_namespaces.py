"""Network namespaces: what a partition loses, that no route leads outside, and the fallback to relays.

Each test leaves the host's network in a process of its own, because a process cannot return to it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvstore.devcluster.plan import child_environment
from kvstore.verify.run import namespaces
from kvstore.verify.run.namespaces import choose, why_not

PROGRAM = """
import json, os, socket, subprocess, sys, time
from kvstore.verify.run.namespaces import Fabric, address, enter_hub

enter_hub()
fabric = Fabric([1, 2, 3])
fabric.build()

LISTEN = '''
import socket, sys
box = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
box.bind(("", 9))
print("ready", flush=True)
while True:
    print(box.recv(99).decode(), flush=True)
'''
SAY = '''
import socket, sys
box = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for to in sys.argv[2:]:
    box.sendto(sys.argv[1].encode(), (to, 9))
'''
ears = {
    n: subprocess.Popen([*fabric.inside(n), sys.executable, "-c", LISTEN], stdout=subprocess.PIPE, text=True)
    for n in (1, 2, 3)
}
for ear in ears.values():
    ear.stdout.readline()

def say(word):
    for n in ears:
        to = [address(other) for other in ears if other != n]
        subprocess.run([*fabric.inside(n), sys.executable, "-c", SAY, f"{word}{n}", *to], check=True)

heard = {n: [] for n in ears}
before = fabric.lost()
fabric.set_blocked(frozenset({(1, 2)}))
say("blocked")
lost = fabric.lost() - before
fabric.set_blocked(frozenset())
say("healed")
for n, ear in ears.items():
    while sum(line.startswith("healed") for line in heard[n]) < 2:
        heard[n].append(ear.stdout.readline().strip())
routes = [json.loads(subprocess.run([*fabric.inside(1), "ip", "-j", "route"], capture_output=True).stdout),
          json.loads(subprocess.run(["ip", "-j", "route"], capture_output=True).stdout)]
print(json.dumps({"heard": heard, "lost": lost, "routes": routes, "ears": [e.pid for e in ears.values()]}))
sys.stdout.flush()
if "crash" in sys.argv:
    os._exit(1)
for ear in ears.values():
    ear.kill()
    ear.wait()
fabric.remove()

def left():
    links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True).stdout)
    return [link["ifname"] for link in links if link["ifname"].startswith("kv")]

deadline = time.monotonic() + 20  # the kernel removes a namespace asynchronously
while left() and time.monotonic() < deadline:
    time.sleep(0.05)
print(json.dumps(left()))
"""
GONE_TIMEOUT_S = 30.0


def links_here() -> set[str]:
    return {line.partition(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]}


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("end", ["orderly", "crash"])
def test_a_partition_loses_frames_of_one_link_and_leaves_nothing_behind(end: str) -> None:
    why = why_not()
    if why:
        assert choose("auto", ()) == ("relay", why), "without namespaces, relays are used"
        with pytest.raises(ValueError, match="no network of namespaces"):
            choose("namespaces", ())
        return
    before = links_here()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, end],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    assert done.stdout, done.stderr
    first, *rest = done.stdout.splitlines()
    seen = json.loads(first)
    heard = {number: sorted(words) for number, words in seen["heard"].items()}
    assert heard["2"] == ["blocked3", "healed1", "healed3"], (
        "the frames from the first to the second were lost"
    )
    assert heard["1"] == ["blocked2", "blocked3", "healed2", "healed3"]
    assert heard["3"] == ["blocked1", "blocked2", "healed1", "healed2"]
    assert seen["lost"] == 1
    for routes in seen["routes"]:
        assert [route["dst"] for route in routes] == ["192.0.2.0/24"], "there is a way outside"
    assert rest == ([] if end == "crash" else ["[]"]), done.stderr
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while any(is_alive(pid) for pid in seen["ears"]):
        assert time.monotonic() < deadline, "a process in a namespace outlived the run"
        time.sleep(0.05)
    assert links_here() == before


def test_relays_are_used_where_namespaces_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "why_not", lambda: "not permitted")
    assert choose("auto", ["kill"]) == ("relay", "not permitted")
    assert choose("relay", ["kill"]) == ("relay", "")
    with pytest.raises(ValueError, match="not permitted"):
        choose("namespaces", ["kill"])
    monkeypatch.setattr(namespaces, "why_not", lambda: "")
    assert choose("auto", ["kill"]) == ("namespaces", "")
    assert choose("auto", ["kill", "slow-links"]) == ("relay", "slow-links need relays")
    with pytest.raises(ValueError, match="slow-links"):
        choose("namespaces", ["slow-links"])


def test_without_a_tool_there_are_no_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "PATH": "/nowhere"})
    assert why_not() == "ip, bridge, nsenter, setpriv, unshare not installed"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_partitions_by_namespaces_where_available(tmp_path: Path) -> None:
    options = "--workload register --nemesis partition-leader --seconds 6 --rate 100 --slots 4 --seed 3"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "kvstore", "verify", "run", *options.split()),
            *("--network", "auto", "--directory", str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
    )
    (config,) = tmp_path.glob("*/config.json")
    used = json.loads(config.read_text())["means"]["network"]
    why = why_not()
    assert used == ("relay" if why else "namespaces")
    assert (f"links between members pass relays: {why}" in done.stdout) == bool(why)
    assert done.stdout.splitlines()[-2].startswith("valid"), done.stdout + done.stderr
    schedule = json.loads((config.parent / "schedule.json").read_text())
    word = "connections held" if why else "frames lost"
    assert any(word in fault["evidence"] for fault in schedule)
