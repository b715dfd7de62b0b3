"""Images of the state and the log they stand for: sent, received, installed, and compacted behind.

The one place that joins the parts which know about images with those that hold the state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from raft.core import RaftCore
from raft.node.admission import Admission
from raft.node.applying import Applier
from raft.node.compaction import Compaction
from raft.node.config import NodeConfig
from raft.node.image_receiver import ImageReceiver
from raft.node.image_sender import ImageSender
from raft.node.machine import Machine
from raft.node.membership import Membership
from raft.node.proposals import Proposals
from raft.node.reads import Reads
from raft.node.status import ImageStatistics
from raft.node.write_behind import WriteBehind
from raft.storage.images import Image, ImageStore
from raft.storage.protocol import LogWriter, StateFile, StateMark
from raft.transport.protocol import Hello, ImageOffer, ImageRefused, ImageSink, Transport


class Snapshots:
    """Owned by the core's owner."""

    def __init__(
        self,
        *,
        config: NodeConfig,
        core: RaftCore,
        log: LogWriter,
        images: ImageStore,
        transport: Transport,
        machine: Machine,
        admission: Admission,
        membership: Membership,
        write_behind: WriteBehind,
        applier: Applier,
        proposals: Proposals,
        reads: Reads,
        loop: asyncio.AbstractEventLoop,
        post: Callable[[Callable[[], None]], None],
        listeners: Sequence[Callable[[int], None]],
    ) -> None:
        """`listeners` are called with the index whenever an image has become the state."""
        self.images = images
        """Where copies of the state are read and discarded."""
        self._machine = machine
        self._admission = admission
        self._membership = membership
        self._write_behind = write_behind
        self._applier = applier
        self._proposals = proposals
        self._reads = reads
        self._sender = ImageSender(
            core=core, transport=transport, images=images, write_behind=write_behind, loop=loop, post=post
        )
        self.wish = self._sender.wish
        self._receiver = ImageReceiver(
            member_id=config.member_id,
            core=core,
            images=images,
            machine=machine,
            applied=lambda: self._applier.applied,
            process_of=lambda member: admission.boot_id(member) if admission.ready(member) else None,
            loop=loop,
            post=post,
            installed=self._install,
        )
        self.log_names = self._receiver.log_names
        self._compaction = Compaction(core, log, config, lambda: self._sender.held_index)
        self._listeners = listeners
        self._cancelled = False

    def on_image(self, hello: Hello, offer: ImageOffer) -> ImageSink:
        """See `Receiver`."""
        if self._cancelled or not self._admission.admitted:
            raise ImageRefused("this member takes no images now")
        return self._receiver.on_image(hello, offer)

    async def copy_state(self) -> Image:
        """A copy of the whole state, at least of what is applied now, as a file; for a backup.

        Takes as long as the state is large, without disturbing anything. Read it with `images.read`, and
        give it to `images.discard` in the end. Raises StateFileFull, StateFileFailed or OSError.
        """
        await self._write_behind.reach(self._applier.applied)
        return await self.images.build(self._write_behind.state)

    def look(self) -> None:
        """Once a tick."""
        position = self._applier.nbytes - self._write_behind.undurable_bytes
        self._compaction.consider(self._write_behind.durable, position)
        self._sender.look()
        self._receiver.look()

    def cancel(self) -> None:
        """The member ends: nothing is begun or installed any more."""
        self._cancelled = True
        self._sender.cancel()
        self._receiver.cancel()

    async def close(self) -> None:
        """After `cancel`: wait for what was under way."""
        await self._sender.close()
        await self._receiver.close()

    def statistics(self) -> ImageStatistics:
        out, into = self._sender.counters(), self._receiver.counters()
        return ImageStatistics(
            built=out.built,
            sent=out.sent,
            send_failures=out.failed,
            sent_bytes=out.sent_bytes,
            sending=out.sending,
            installed=into.installed,
            resumed=into.resumed,
            superseded=into.superseded,
            receive_failures=into.failed,
            received_bytes=into.received_bytes,
            receiving=into.receiving,
        )

    def _install(self, mark: StateMark, machine: Machine, state: StateFile) -> None:
        """The log names the image that `machine` and `state` hold: from now on that is the state."""
        self._machine.replace(machine)
        before, commit = self._write_behind.replace(state, mark)
        self._receiver.retire(before, commit, mark.index)
        self._applier.overtake(mark)
        self._proposals.overtaken(mark.term)
        self._membership.overtaken()
        self._membership.refresh(mark.conf)
        self._reads.applied(mark.index)
        for listener in self._listeners:
            listener(mark.index)
