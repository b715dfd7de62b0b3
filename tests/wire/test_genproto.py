"""Generated wire modules: fresh, complete, and good neighbours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool

from kvstore.wire import health_pb2, kv_pb2, rpc_pb2, v3election_pb2, v3lock_pb2

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "genproto.py"

PATHS = {
    "etcdserverpb.KV": "Range Put DeleteRange Txn Compact RangeStream",
    "etcdserverpb.Watch": "Watch",
    "etcdserverpb.Lease": "LeaseGrant LeaseRevoke LeaseKeepAlive LeaseTimeToLive LeaseLeases",
    "etcdserverpb.Cluster": "MemberAdd MemberRemove MemberUpdate MemberList MemberPromote",
    "etcdserverpb.Maintenance": "Alarm Status Defragment Hash HashKV Snapshot MoveLeader Downgrade",
    "etcdserverpb.Auth": "AuthEnable AuthDisable AuthStatus Authenticate UserAdd UserGet UserList UserDelete "
    "UserChangePassword UserGrantRole UserRevokeRole RoleAdd RoleGet RoleList RoleDelete "
    "RoleGrantPermission RoleRevokePermission",
    "v3lockpb.Lock": "Lock Unlock",
    "v3electionpb.Election": "Campaign Proclaim Leader Observe Resign",
    "grpc.health.v1.Health": "Check Watch",
}


def run_check(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), "--check", "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_checked_in_modules_are_fresh() -> None:
    result = run_check(ROOT)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("victim", ["proto/kvstore/wire/kv.proto", "kvstore/wire/kv_pb2.py"])
def test_a_changed_source_or_module_is_detected(tmp_path: Path, victim: str) -> None:
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    for package in ("kvstore/wire", "raft/transport/wire"):
        if (ROOT / package).exists():
            shutil.copytree(ROOT / package, tmp_path / package)
    path = tmp_path / victim
    path.write_text(path.read_text().replace("bytes value = 5", "bytes value = 7") + "\n# changed\n")
    result = run_check(tmp_path)
    assert result.returncode == 1
    assert "disagree" in result.stderr


def test_every_method_of_the_etcd_services_is_there() -> None:
    found = {
        service.full_name: " ".join(method.name for method in service.methods)
        for module in (rpc_pb2, v3lock_pb2, v3election_pb2, health_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    }
    assert found == PATHS


def test_field_numbers_that_differ_from_counting() -> None:
    assert rpc_pb2.Compare.DESCRIPTOR.fields_by_name["range_end"].number == 64
    assert rpc_pb2.WatchResponse.DESCRIPTOR.fields_by_name["events"].number == 11
    pair = kv_pb2.KeyValue(key=b"k", create_revision=2, mod_revision=3, version=4, value=b"v", lease=5)
    assert pair.SerializeToString().hex() == "0a016b1002180320042a01763005"


def test_messages_stay_out_of_the_default_pool() -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("etcdserverpb.PutRequest")


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
def test_another_definition_of_the_same_messages_in_one_process(order: str) -> None:
    """As when another etcd client, whose file is named differently, is imported beside ours."""
    theirs = (
        "from google.protobuf import descriptor_pb2, descriptor_pool, message_factory\n"
        "f = descriptor_pb2.FileDescriptorProto(name='rpc.proto', package='etcdserverpb', syntax='proto3')\n"
        "m = f.message_type.add(name='PutRequest')\n"
        "m.field.add(name='key', number=1, type=12, label=1)\n"
        "pool = descriptor_pool.Default()\n"
        "pool.Add(f)\n"
        "other = message_factory.GetMessageClass(pool.FindMessageTypeByName('etcdserverpb.PutRequest'))\n"
    )
    ours = "from kvstore.wire import rpc_pb2\n"
    script = (
        "data = other(key=b'k').SerializeToString()\n"
        "assert rpc_pb2.PutRequest.FromString(data).key == b'k'\n"
        "assert rpc_pb2.PutRequest is not other\n"
        "print('both')\n"
    )
    program = (ours + theirs if order == "ours first" else theirs + ours) + script
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert result.stdout.strip() == "both", result.stderr
