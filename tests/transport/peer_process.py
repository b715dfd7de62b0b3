"""A member in a process of its own, for tests that kill it: prints its port, stops on SIGTERM."""

from __future__ import annotations

import asyncio
import random
import signal
import sys

from raft.core.messages import Message, MessageType
from raft.transport.grpc_transport import GrpcTransport
from raft.transport.protocol import Hello, HelloAnswer, PeerMessage
from raft.transport.rules import HELLO_FORMAT_VERSION


class Echo:
    """Greets whoever it reaches, and sends every message back to whoever sent it."""

    def __init__(self, transport: GrpcTransport, hello: Hello) -> None:
        self.transport = transport
        self.hello = hello

    def on_hello(self, hello: Hello) -> HelloAnswer:
        return HelloAnswer(hello=self.hello, earlier_disk_known=False)

    def on_answer(self, member_id: int, answer: HelloAnswer) -> None:
        pass

    def on_message(self, member_id: int, boot_id: int, message: PeerMessage) -> None:
        self.transport.send(member_id, message)

    def on_connected(self, member_id: int) -> None:
        self.transport.send(member_id, Message(MessageType.HEARTBEAT_RESPONSE, to=member_id, from_=2))

    def on_disconnected(self, member_id: int) -> None:
        pass

    def on_dropped(self, member_id: int, message: PeerMessage) -> None:
        pass


async def main(peer_url: str) -> None:
    transport = GrpcTransport(("http://127.0.0.1:0",), rng=random.Random(1))
    hello = Hello(
        format_version=HELLO_FORMAT_VERSION, cluster_id=0xC1, member_id=2, disk_id=0x200, boot_id=20
    )
    transport.set_peer(1, (peer_url,))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await transport.start(hello, Echo(transport, hello))
    sys.stdout.write(f"{transport.listen_ports[0]}\n")
    sys.stdout.flush()
    await stop.wait()
    await transport.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
