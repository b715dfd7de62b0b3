"""snapshot save, status and restore, and the real etcdctl saving from us."""

import json

import pytest

from kvstore.cli.main import run


@pytest.fixture(scope="module")
def home(make_member, tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    with make_member(folder / "data").run(log=folder / "log") as member:
        yield member


def test_a_saved_state_is_shown_and_restored(ours, home, make_member, tmp_path):
    endpoint = f"--endpoints={home.endpoint}"
    assert ours(["put", "a", "1", endpoint]).code == 0
    path = str(tmp_path / "backup")
    saved = ours(["snapshot", "save", path, endpoint])
    assert (saved.code, saved.out) == (0, f"Snapshot saved at {path}\n".encode())
    shown = json.loads(ours(["snapshot", "status", path, "-w", "json"]).out)
    assert shown["revision"] == 2
    assert shown["totalSize"] % 512 == 32
    assert ours(["snapshot", "status", path]).out.startswith(b"%x, 2, " % shown["hash"])
    assert b"TOTAL SIZE" in ours(["snapshot", "status", path, "-w", "table"]).out
    assert ours(["snapshot", "status", path, "-w", "protobuf"]).code == 4

    again = make_member(tmp_path / "restored")
    peer = f"http://127.0.0.1:{again.peer_port}"
    restore = [
        *("snapshot", "restore", path, "--name=a", f"--data-dir={again.data_dir}"),
        *(f"--initial-cluster=a={peer}", f"--initial-advertise-peer-urls={peer}"),
    ]
    done = ours(restore)
    assert done.code == 0, done.err
    refused = f'Error: data-dir "{again.data_dir}" not empty or could not be read\n'
    assert ours(restore).err == refused.encode()
    with again.run(log=tmp_path / "log"):
        got = json.loads(ours(["get", "a", "-w", "json", f"--endpoints={again.endpoint}"]).out)
    assert got["header"]["revision"] == 10**9 + 2
    assert got["kvs"][0]["mod_revision"] == 2


def test_what_is_no_backup_is_refused_in_one_line(ours, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1024))
    for args in (["status"], ["restore", f"--data-dir={tmp_path / 'new'}"]):
        refused = ours(["snapshot", args[0], str(path), *args[1:]])
        assert refused.code == 1
        assert refused.err.count(b"\n") == 1, refused.err
        assert not (tmp_path / "new").exists()
    assert ours(["snapshot", "status", str(tmp_path / "none")]).code == 1
    assert ours(["snapshot", "save"]).code == 128
    assert ours(["snapshot", "save", str(path), "--endpoints=127.0.0.1:1,127.0.0.1:2"]).code == 128
    gone = ours(["snapshot", "save", str(path), "--endpoints=127.0.0.1:1", "--command-timeout=300ms"])
    assert gone.code == 1
    assert path.read_bytes() == bytes(1024), "what was there stays when saving fails"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("none/backup", "could not open none/backup.part (open none/backup.part: no such file or directory)"),
        ("file/backup", "could not open file/backup.part (open file/backup.part: not a directory)"),
    ],
)
def test_a_backup_that_cannot_be_created(path, text, ours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    args = ["snapshot", "save", path, "--endpoints=127.0.0.1:1", "--command-timeout=1h"]
    refused = ours(args)
    assert (refused.code, refused.out, refused.err.decode()) == (1, b"", f"Error: {text}\n")


def test_a_backup_that_cannot_be_created_is_named_as_by_etcdctl(ours, etcdctl, tmp_path):
    args = ["snapshot", "save", f"{tmp_path}/none/backup", "--endpoints=127.0.0.1:1"]
    assert ours(args).err == etcdctl(args).err != b""


def test_a_backup_whose_name_is_taken(ours, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    refused = ours(["snapshot", "save", "folder", f"--endpoints={home.endpoint}"])
    text = "could not rename folder.part to folder (rename folder.part folder: is a directory)"
    assert (refused.code, refused.out, refused.err.decode()) == (1, b"", f"Error: {text}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_folders_above_a_restored_member_are_made(ours, home, tmp_path):
    path = str(tmp_path / "backup")
    assert ours(["snapshot", "save", path, f"--endpoints={home.endpoint}"]).code == 0
    restored = ours(["snapshot", "restore", path, f"--data-dir={tmp_path}/a/b/c"])
    assert (restored.code, restored.err) == (0, b"")
    assert (tmp_path / "a/b/c/wal").is_dir()
    for directory, text in (
        (f"{path}/x/y", f"mkdir {path}/x: not a directory"),
        (path, f'data-dir "{path}" not empty or could not be read'),
    ):
        refused = ours(["snapshot", "restore", path, f"--data-dir={directory}"])
        assert (refused.code, refused.out, refused.err.decode()) == (1, b"", f"Error: {text}\n")
    (tmp_path / "text").touch()
    assert ours(["snapshot", "restore", str(tmp_path / "text"), f"--data-dir={tmp_path}/d/e"]).code == 1
    assert not (tmp_path / "d").exists(), "a wrong file leaves nothing behind"


@pytest.mark.parametrize("verb", ["status", "restore"])
def test_a_backup_that_is_not_there(verb, ours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = ours(["snapshot", verb, "none"])
    text = "Error: stat none: no such file or directory\n"
    assert (refused.code, refused.out, refused.err.decode()) == (1, b"", text)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def wrong_files(home, tmp_path_factory):
    """Files that are no snapshot, or not what was saved: name -> path."""
    folder = tmp_path_factory.mktemp("wrong")
    good = folder / "good"
    assert run(["snapshot", "save", str(good), f"--endpoints={home.endpoint}"]) == 0
    data = good.read_bytes()
    contents = {
        "text": b"some text\n",
        "empty": b"",
        "etcd": bytes(16) + (0xED0CDAED).to_bytes(4, "little") + bytes(4096),
        "bare": data[:-32],
        "short": data[:5000],
        "changed": data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        "other": b"SQLite format 3\0" + bytes(2048 - 16),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "directory").mkdir()
    return folder


NO_HASH = "snapshot missing hash but --skip-hash-check=false"


@pytest.mark.parametrize(
    ("name", "shown", "restored"),
    [
        ("none", "stat {}: no such file or directory", None),
        ("directory", "open {}: is a directory", "open {}: is a directory"),
        ("text", "invalid database: {} is not a snapshot", None),
        ("empty", "invalid database: {} is not a snapshot", None),
        (
            "etcd",
            (
                "invalid database: {} is a snapshot of etcd, which only etcd's own tools restore;"
                " to take over its keys, restore it there and mirror them (make-mirror)"
            ),
            None,
        ),
        ("short", "snapshot file integrity check failed: {}: ", NO_HASH),
        ("other", "snapshot file integrity check failed: {}: ", NO_HASH),
        ("changed", "expected sha256 [", None),
        ("bare", "", NO_HASH),
    ],
)
def test_a_wrong_file_is_named_and_no_member_is_blamed(name, shown, restored, ours, wrong_files, tmp_path):
    path = wrong_files / name
    before = sorted(wrong_files.iterdir())
    status = ours(["snapshot", "status", str(path)])
    restore = ours(["snapshot", "restore", str(path), f"--data-dir={tmp_path / 'new'}"])
    for done, text in ((status, shown), (restore, shown if restored is None else restored)):
        assert done.code == bool(text)
        if text:
            assert done.err.decode().startswith(f"Error: {text.format(path)}")
        assert b"delete its data directory" not in done.err
    assert sorted(wrong_files.iterdir()) == before, "nothing is written beside it"
    assert not (tmp_path / "new").exists()


def test_a_bare_copy_is_restored_where_that_is_asked_for(ours, wrong_files, tmp_path):
    restore = ["snapshot", "restore", "--skip-hash-check", f"--data-dir={tmp_path / 'new'}"]
    assert ours([*restore, str(wrong_files / "bare")]).code == 0
    refused = ours([*restore, str(wrong_files / "text")])
    assert refused.err.decode() == f"Error: invalid database: {wrong_files / 'text'} is not a snapshot\n"


def test_etcdctl_saves_what_we_send(etcdctl, ours, home, tmp_path):
    path = str(tmp_path / "backup")
    saved = etcdctl(["snapshot", "save", path, f"--endpoints={home.endpoint}"])
    assert (saved.code, saved.out) == (0, f"Snapshot saved at {path}\n".encode())
    assert ours(["snapshot", "status", path]).code == 0
