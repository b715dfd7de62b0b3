"""A member in a process of its own, for tests that kill it: prints its port, stops on SIGTERM."""

from __future__ import annotations

import asyncio
import random
import signal
import sys

from kvstore.peering import make_peer_stack
from raft.core.messages import Message, MessageType
from raft.transport.liveness import HANDSHAKE_FORMAT_VERSION
from raft.transport.peer_transport import PeerTransport
from raft.transport.transport_protocol import Handshake, HandshakeReply, PeerMessage


class Echo:
    """Sends a message to every peer that connects, and every message back to its sender."""

    def __init__(self, transport: PeerTransport, handshake: Handshake) -> None:
        self.transport = transport
        self.handshake = handshake

    def on_handshake(self, handshake: Handshake) -> HandshakeReply:
        return HandshakeReply(handshake=self.handshake, earlier_disk_known=False)

    def on_answer(self, member_id: int, answer: HandshakeReply) -> None:
        pass

    def on_message(self, member_id: int, incarnation: int, message: PeerMessage) -> None:
        self.transport.send(member_id, message)

    def on_connected(self, member_id: int) -> None:
        self.transport.send(member_id, Message(MessageType.HEARTBEAT_RESPONSE, to=member_id, from_=2))

    def on_disconnected(self, member_id: int) -> None:
        pass

    def on_dropped(self, member_id: int, message: PeerMessage) -> None:
        pass


async def main(peer_url: str, stack: str) -> None:
    transport = PeerTransport(("http://127.0.0.1:0",), stack=make_peer_stack(stack), rng=random.Random(1))
    handshake = Handshake(
        format_version=HANDSHAKE_FORMAT_VERSION, cluster_id=0xC1, member_id=2, disk_id=0x200, incarnation=20
    )
    transport.set_peer(1, (peer_url,))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await transport.start(handshake, Echo(transport, handshake))
    sys.stdout.write(f"{transport.listen_ports[0]}\n")
    sys.stdout.flush()
    await stop.wait()
    await transport.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
