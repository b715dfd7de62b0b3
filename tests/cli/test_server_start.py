"""What the start of a server's process shows to those who wait for it."""

import json


def test_it_says_that_it_is_ready_once_it_listens_and_has_a_leader(make_member, tmp_path):
    """etcd's order. The election timeout is one that no test waits for."""
    member = make_member(tmp_path / "data")
    with member.run("--heartbeat-interval=1000", "--election-timeout=50000", log=tmp_path / "log"):
        said = [json.loads(line)["msg"] for line in (tmp_path / "log").read_text().splitlines()]
    assert [line for line in said if not line.startswith("received signal")] == [
        f"listening for client requests on {member.endpoint}",
        "this member leads",
        "ready to serve client requests",
    ]
