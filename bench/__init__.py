"""What measures this store, beside a real etcd, as real processes on one machine.

`clusters`   starts, kills, pauses and restarts members of either; both take etcd's flags
`proxy`      resets and silences peer connections
`rpc`        one plain grpc.aio client for both, over raw messages
`compare`    `make bench`: operations per second, latency and CPU, in alternation
`profile`    `make profile`: the leader's hot path
`failover`   `make bench-failover`: the gap in writes when the leader is killed
`start`      `make bench-start`: how long a start takes, of the command, of one member, of three
`torture`    `make torture`: kill everything under load; nothing acknowledged may be lost

Tests use the first three. Nothing here is part of the installed package.
"""
