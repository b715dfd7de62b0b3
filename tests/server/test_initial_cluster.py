"""Ids of a founded cluster, against those that etcd itself derives; and that only a first start reads it."""

from __future__ import annotations

import pytest

from kvstore.devcluster.plan import free_ports
from kvstore.server.initial_cluster import bootstrap_cluster, cluster_id_of, member_id_of


def test_the_ids_everybody_knows_from_a_default_etcd() -> None:
    initial_cluster = bootstrap_cluster({"default": ["http://localhost:2380"]}, "default", "etcd-cluster")
    assert f"{initial_cluster.member_id:x}" == "8e9e05c52164694d"
    assert f"{initial_cluster.cluster_id:x}" == "cdf818194e3a8c32"


def test_every_bootstrap_member_computes_the_same_cluster() -> None:
    initial = {name: [f"http://127.0.0.1:{port}"] for name, port in (("a", 2380), ("b", 22380), ("c", 32380))}
    views = [bootstrap_cluster(initial, name, "token") for name in initial]
    assert len({view.cluster_id for view in views}) == 1
    assert len({view.members for view in views}) == 1
    assert {view.member_id for view in views} == {member.id for member in views[0].members}
    assert [member.id for member in views[0].members] == sorted(member.id for member in views[0].members)
    reordered = bootstrap_cluster(dict(reversed(initial.items())), "a", "token")
    assert reordered == views[0]


def test_another_token_is_another_cluster() -> None:
    assert member_id_of(["http://a:1"], "x") != member_id_of(["http://a:1"], "y")
    assert member_id_of(["http://b:1", "http://a:1"], "x") == member_id_of(["http://a:1", "http://b:1"], "x")
    assert cluster_id_of([1, 2]) == cluster_id_of([2, 1]) != cluster_id_of([1, 3])


def test_members_with_equal_urls_are_refused() -> None:
    with pytest.raises(ValueError, match="same peer URLs"):
        bootstrap_cluster({"a": ["http://a:1"], "b": ["http://a:1"]}, "a", "token")


@pytest.mark.asyncio
async def test_a_member_with_data_does_not_read_what_a_first_start_needs(members) -> None:
    cluster = await members.start(3)
    await cluster[0].put(b"k", b"1")
    stopped = cluster[2]
    member_id, cluster_id = stopped.handle.member_id, stopped.handle.cluster_id
    (port,) = free_ports(1)
    fourth = f"http://127.0.0.1:{port}"
    own = stopped.config.listen_peer_urls
    for changes in (
        {"initial_cluster": f"{stopped.config.initial_cluster},d={fourth}"},
        {
            "initial_cluster": f"{stopped.config.initial_cluster},d={fourth}",
            "initial_cluster_state": "existing",
        },
        {"initial_cluster": f"c={own}"},
        {"initial_cluster": f"c={fourth},b={fourth}"},
        {"initial_cluster": "d=nonsense", "initial_cluster_state": "existing"},
        {"initial_cluster": "", "name": "a=b,c"},
        {"initial_cluster_token": "another"},
        {"initial_advertise_peer_urls": "http://no.such.host:1"},
    ):
        await stopped.stop()
        stopped = members.add(**{**vars(cluster[2].config), **changes})
        await stopped.start()
        await stopped.ready()
        assert (stopped.handle.member_id, stopped.handle.cluster_id) == (member_id, cluster_id), changes
        assert await stopped.get(b"k") == b"1", changes
