"""What gRPC says of a connection that cannot be made, in the words that a person knows."""

import pytest

from kvstore.client.causes import cause_of
from kvstore.client.outcomes import never_sent
from kvstore.errors import Code

CONNECT = "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: {}"
REMOTE = CONNECT.format("Failed to connect to remote host: {}")
RESOLVE = "errors resolving h:1: [field:hostname lookup error:address lookup failed for h:1: {}]"
SETTINGS = "connection attempt timed out before receiving SETTINGS frame"
ANOTHER = "Failed parsing HTTP/2 (Expected SETTINGS frame as the first frame, got frame type 80)"


@pytest.mark.parametrize(
    ("details", "text", "certain"),
    [
        (REMOTE.format("Connection refused"), "connection refused", False),
        (REMOTE.format("connect: Connection refused (111)"), "connection refused", False),
        (REMOTE.format("getsockopt(SO_ERROR): No route to host"), "no route to host", False),
        (
            CONNECT.format("connect failed: addr: ipv4:1.2.3.4:1 error: Network is unreachable"),
            "network is unreachable",
            False,
        ),
        (CONNECT.format(SETTINGS), SETTINGS, False),
        (CONNECT.format("Socket closed"), "socket closed", False),
        (CONNECT.format(ANOTHER), "not a gRPC server", False),
        (RESOLVE.format("Domain name not found"), "no such host", True),
        (RESOLVE.format("DNS server returned answer with no data"), "no such host", True),
        (RESOLVE.format("Could not contact DNS servers"), "could not contact DNS servers", False),
    ],
)
def test_causes_in_words(details, text, certain):
    cause = cause_of(details)
    assert (cause.text, cause.certain) == (text, certain)
    assert never_sent(Code.UNAVAILABLE, details)


def test_what_a_member_says_is_no_cause():
    assert cause_of("etcdserver: no leader") is None
    assert not never_sent(Code.UNAVAILABLE, "etcdserver: no leader")
