"""Peer URLs that a member advertises against those of the initial cluster, and those it was added with."""

from __future__ import annotations

import asyncio
import socket

import pytest

from kvstore import Config
from kvstore.configuration.config_setting import ConfigError, parse_urls
from kvstore.devcluster.plan import free_ports
from kvstore.server import url_matching
from kvstore.server.initial_cluster import bootstrap_urls
from kvstore.server.url_matching import difference
from kvstore.wire import rpc_pb2 as pb

HOSTS = {"one.example": ["127.0.0.1"], "both.example": ["::1", "127.0.0.1"], "two.example": ["127.0.0.2"]}


@pytest.fixture(autouse=True)
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names have the addresses of HOSTS; returns those that were looked up."""
    names: list[str] = []

    async def getaddrinfo(_loop: object, host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        if host == "127.0.0.1":  # dialled by its address: nothing is looked up
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        names.append(host)
        if host not in HOSTS:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in HOSTS[host]]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return names


def compare(ours: str, theirs: str, **options: float) -> str:
    return asyncio.run(difference(parse_urls(ours), parse_urls(theirs), **options))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("http://one.example:1", "http://127.0.0.1:1"),
        ("http://127.0.0.1:1", "http://both.example:1"),
        ("http://one.example:1", "http://both.example:1"),
        ("http://[::1]:1", "http://[0::1]:1"),
        ("http://two.example:1,http://127.0.0.1:1", "http://one.example:1,http://127.0.0.2:1"),
        ("http://127.0.0.1:2,http://127.0.0.1:1", "http://127.0.0.1:1,http://127.0.0.1:2"),
    ],
)
def test_a_name_and_its_address_are_the_same(ours: str, theirs: str) -> None:
    assert compare(ours, theirs) == ""


def test_equal_texts_are_not_looked_up(looked_up: list[str]) -> None:
    assert compare("http://no.such.name:1", "http://no.such.name:1") == ""
    assert looked_up == []


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        (
            "http://one.example:1",
            "http://127.0.0.1:2",
            (
                '"http://127.0.0.1:1"(resolved from "http://one.example:1")'
                ' != "http://127.0.0.1:2"(resolved from "http://127.0.0.1:2")'
            ),
        ),
        (
            "http://127.0.0.1:1",
            "http://localhost:1",
            (
                '"http://127.0.0.1:1"(resolved from "http://127.0.0.1:1")'
                ' != "http://localhost:1"(resolved from "http://localhost:1")'
            ),
        ),
        ("http://a:1", "http://a:1,http://b:1", 'len(["http://a:1"]) != len(["http://a:1" "http://b:1"])'),
        (
            "http://no.such.name:1",
            "http://127.0.0.1:1",
            'failed to resolve "http://no.such.name:1" (Name or service not known)',
        ),
    ],
)
def test_what_differs_is_named(ours: str, theirs: str, reason: str) -> None:
    assert compare(ours, theirs) == reason


def test_a_name_may_become_known_in_time(looked_up: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(url_matching, "RETRY_SECONDS", 0.0)
    monkeypatch.setitem(HOSTS, "late.example", [])

    class Late(dict[str, list[str]]):
        def __contains__(self, host: object) -> bool:
            return len(looked_up) > 2

        def __getitem__(self, host: str) -> list[str]:
            return ["127.0.0.1"]

    monkeypatch.setitem(globals(), "HOSTS", Late())
    assert compare("http://late.example:1", "http://127.0.0.1:1", patience_s=30.0) == ""
    assert looked_up == ["late.example"] * 3


URL = "http://127.0.0.1:2380"


@pytest.mark.parametrize(
    ("cluster", "advertised", "error"),
    [
        (
            "a=http://localhost:2380",
            URL,
            (
                f"--initial-cluster has a=http://localhost:2380 but missing from"
                f' --initial-advertise-peer-urls={URL} ("{URL}"(resolved from "{URL}")'
                ' != "http://localhost:2380"(resolved from "http://localhost:2380"))'
            ),
        ),
        (
            f"a={URL},a=http://127.0.0.1:2381",
            URL,
            (
                "--initial-cluster has a=http://127.0.0.1:2381 but missing from"
                f" --initial-advertise-peer-urls={URL}"
                f' (len(["{URL}"]) != len(["{URL}" "http://127.0.0.1:2381"]))'
            ),
        ),
        (
            f"a={URL}",
            f"{URL},http://127.0.0.1:2381",
            (
                "--initial-advertise-peer-urls has http://127.0.0.1:2381 but missing from"
                f" --initial-cluster=a={URL},a=http://127.0.0.1:2381"
            ),
        ),
    ],
)
def test_a_list_with_other_urls_is_refused_in_etcds_words(cluster: str, advertised: str, error: str) -> None:
    config = Config(name="a", initial_cluster=cluster, initial_advertise_peer_urls=advertised)
    config.validate()
    with pytest.raises(ConfigError) as caught:
        asyncio.run(bootstrap_urls(config))
    assert caught.value.text == error


def test_the_member_has_the_urls_of_the_list() -> None:
    config = Config(
        name="a",
        initial_cluster="a=http://one.example:2380,,b=http://two.example:2380,",
        initial_advertise_peer_urls=URL,
    )
    assert asyncio.run(bootstrap_urls(config)) == {
        "a": ["http://one.example:2380"],
        "b": ["http://two.example:2380"],
    }


@pytest.mark.asyncio
async def test_a_member_added_by_its_address_joins_by_its_name(members) -> None:
    (first,) = await members.start(1)
    (port,) = free_ports(1)
    request = pb.MemberAddRequest(peerURLs=[f"http://127.0.0.1:{port}"], isLearner=True)
    added = (await first.call("Cluster/MemberAdd", request)).member
    second = members.add(
        name="b",
        data_dir=str(members.directory / "b"),
        listen_peer_urls=f"http://127.0.0.1:{port}",
        listen_client_urls="http://127.0.0.1:0",
        # what is advertised counts at a bootstrap alone
        initial_advertise_peer_urls="http://elsewhere.example:1",
        initial_cluster=f"a={first.config.listen_peer_urls},b=http://one.example:{port}",
        initial_cluster_state="existing",
        heartbeat_interval=20,
        election_timeout=200,
    )
    await second.start()
    await second.ready()
    assert second.handle.member_id == added.ID
