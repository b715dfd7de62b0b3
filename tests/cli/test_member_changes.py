"""member add, update, promote, remove and move-leader, beside the real etcdctl on two etcds alike.

Ids are drawn anew by each server, so they are compared by their order of appearance. Left out is what
we do otherwise on purpose: forms that cannot show a reply are refused before anything is changed, and
a learner that is moved stays one (etcd 3.5.1 forgets it).
"""

import json
import re

import pytest

from kvstore.wire import rpc_pb2

# {new}: id of the member that has not started; {peers}: two URLs never used; {own}: those of the first
STEPS = [
    "member add",
    "member add a b",
    "member add b",
    "member add b --peer-urls=nonsense",
    "member add b --peer-urls={own}",
    "member add b --peer-urls={peers} --learner",
    "member promote {new}",
    "member remove {new}",
    "member remove {new}",
    "member add b --peer-urls={peers} --learner -w json",
    "member add c --peer-urls=http://127.0.0.1:3 --learner",
    "member remove {new} -w json",
    "member add b --peer-urls={peers} --learner -w protobuf",
    "member remove {new} -w protobuf",
    "member add b --peer-urls={peers} --learner",
    "member list",
    "member update {new} --peer-urls=http://127.0.0.1:4",
    "member update {new} --peer-urls={own}",
    "member remove",
    "member remove 1 2",
    "member remove zz",
    "member remove 12",
    "member remove 11112222333344445",
    "member update",
    "member update 12",
    "member update zz --peer-urls=http://127.0.0.1:4",
    "member promote",
    "member promote zz",
    "move-leader",
    "move-leader zz",
    "move-leader 12",
    "move-leader 12 -w json",
]


def walk(run, endpoint, peer_port):
    found = []
    new = ""
    for number, step in enumerate(STEPS):
        line = step.format(
            own=f"http://127.0.0.1:{peer_port}",
            # etcd makes the id of the URLs and the second: the same ones would be a removed member's
            peers=f"http://127.0.0.1:{100 + number},http://127.0.0.1:{200 + number}",
            new=new,
        )
        found.append(run([*line.split(), f"--endpoints={endpoint}"]))
        if not step.startswith("member add b --"):
            continue
        listed = run(["member", "list", "-w", "json", f"--endpoints={endpoint}"])
        members = json.loads(listed.out)["members"]
        new = next((f"{member['ID']:x}" for member in members if "name" not in member), new)
    return found


REPLIES = {"add": rpc_pb2.MemberAddResponse, "remove": rpc_pb2.MemberRemoveResponse}


def decoded(out, reply_type):
    """A reply as a whole, to the last byte, but for its random ids and the order that follows from them."""
    reply = reply_type.FromString(out)
    assert reply.SerializeToString() == out, "more than the reply was written"
    lone = [reply.member] if "member" in reply_type.DESCRIPTOR.fields_by_name else []
    for member in [*reply.members, *lone]:
        member.ID = int(member.ID > 0)
    members = sorted(reply.members, key=lambda member: list(member.peerURLs))
    del reply.members[:]
    reply.members.extend(members)
    return str(reply)


def plain(outcome, form, verb):
    """Ids replaced by their order of appearance; members sorted by what else they are."""
    if form == "protobuf":
        return outcome.code, decoded(outcome.out, REPLIES[verb]), outcome.err
    if form == "json" and outcome.out.startswith(b"{"):
        reply = json.loads(outcome.out)
        order = sorted(reply.get("members", ()), key=lambda member: member["peerURLs"])
        for member in [*order, reply.get("member", {"ID": 0})]:
            member["ID"] = bool(member["ID"])
        reply["members"] = order
        return outcome.code, json.dumps(reply), outcome.err
    known = {}

    def name(match):
        return b"ID%d" % known.setdefault(match[1], len(known))

    text = re.sub(
        rb'(?<=CLUSTER=")(.*?)(?=")', lambda match: b",".join(sorted(match[0].split(b","))), outcome.out
    )
    an_id = re.compile(rb" *\b([0-9a-f]{13,16})\b *")  # left-padded when its first digit is a zero
    lines = sorted(text.splitlines(), key=lambda line: an_id.sub(b"", line))  # they stand by their random ids
    return outcome.code, an_id.sub(name, b"\n".join(lines)), outcome.err


@pytest.mark.slow
def test_every_step_looks_the_same(ours, etcdctl, start_etcd, free_ports, tmp_path):
    ports = free_ports(2)
    endpoint = f"127.0.0.1:{ports[0]}"
    with start_etcd(tmp_path / "theirs", *ports):
        theirs_found = walk(etcdctl, endpoint, ports[1])
    with start_etcd(tmp_path / "ours", *ports):
        ours_found = walk(ours, endpoint, ports[1])
    differences = []
    for step, theirs, own in zip(STEPS, theirs_found, ours_found, strict=True):
        form, verb = step.rpartition("-w ")[2], step.split()[1] if " " in step else ""
        if plain(theirs, form, verb) != plain(own, form, verb):
            differences.append(f"{step}\n  etcdctl: {theirs}\n  ours:    {own}")
    assert not differences, "\n".join(differences)
    assert {outcome.code for outcome in ours_found} == {0, 1, 128}


def test_a_form_that_cannot_show_the_reply_changes_nothing(ours):
    for form in ("fields", "table"):
        outcome = ours(
            ["member", "remove", "12", "-w", form, "--endpoints=127.0.0.1:1"]
        )  # no member is there: it must not even ask
        assert (outcome.code, outcome.err) == (4, f"Error: {form} not supported as output format\n".encode())
