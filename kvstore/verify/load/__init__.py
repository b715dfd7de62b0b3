"""The clients of a test against real processes: what they do, and the record of what they saw.

The contract. One process of clients is `python -m kvstore.verify.load SPEC`; it runs a number of *slots*,
each one logical client that performs one operation at a time, until its input closes. Everything
it did stands in its history file, with times of the machine's monotonic clock, so that the files of
several processes merge into one history.

* A *workload* (`workloads`, `coordination`) decides what a slot does. It knows the calls of
  `client_protocol.Client` and nothing of gRPC, so that any client can run it.
* A *client* (`grpc_client`, `aetcd_client`) speaks the etcd protocol and sorts every failure into *certain*
  (nothing was applied) and *unknown*. Nothing is ever retried below the record.
* After an unknown outcome the slot goes on as a new process, because the old one may still be at it.

Only the standard library is imported here, outside the client modules: a third-party client has its own
environment, with its own gRPC.
"""
