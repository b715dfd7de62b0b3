"""Every nemesis by its name on the command line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from kvstore.verify.run import (
    api_faults,
    clock_faults,
    disk_faults,
    member_faults,
    network_faults,
    process_faults,
)
from kvstore.verify.run.nemesis_runner import Field, Nemesis

NEMESES: dict[str, Callable[[Field], Nemesis]] = {
    "kill": process_faults.Kill,
    "pause": process_faults.Pause,
    "pause-partition": process_faults.PausePartition,
    "client-pause": process_faults.ClientPause,
    **{
        name: partial(network_faults.PartitionFault, shape=shape)
        for name, shape in network_faults.SHAPES.items()
    },
    "partition-flapping": network_faults.Flapping,
    "slow-links": network_faults.SlowLinks,
    "slow-election": network_faults.SlowElection,
    "reset-links": network_faults.ResetLinks,
    "compaction": api_faults.Compaction,
    "transfer": api_faults.Transfer,
    "snapshots": api_faults.Snapshots,
    "clock": clock_faults.Clock,
    "power-cut": disk_faults.PowerCut,
    "sync-error": disk_faults.SyncError,
    "disk-full": disk_faults.DiskFull,
    "members": member_faults.Members,
    "corruption": member_faults.Corruption,
}
