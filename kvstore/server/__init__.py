"""One member's own affairs, between consensus below and the services above.

`local_member` joins the driver (which knows no keys) with the engine (which knows no consensus):
commands in, outcomes out, reads with a proof. Around it: who founds the cluster (`membership`), the
member's first write (`publication`), the bound on bytes (`quota`), whether it can serve (`health`),
what is counted (`metrics`), how it is configured (`config`) and how it logs (`logs`).

Nothing here knows generated messages, gRPC or HTTP, and nothing awaits on the path of a request.
"""
