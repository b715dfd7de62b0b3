"""Tests against real processes: a cluster, its clients, its nemesis, and the judgement.

The contract. `run_execution` carries out one run and leaves one directory: `config.json` (with the seed),
`schedule.json` (every fault, its time, its targets, and the evidence that it took hold), `history.jsonl` and
`history.edn`, `results.json`, `junit.xml`, `timeline.html`, the members' logs and data. A run is
*inconclusive*, not green, when fewer than half of its operations succeeded, when a fault it asked for never
took hold, or when the server does not serve what the workload needs.

* `cluster_under_test`: the members, as children of this process, on the loopback interface, between proxies;
  `namespaces`: the same members with a network each.
* `nemesis_runner` and the `..._faults`: nemeses as plug-ins, one fault at a time, all healed at the end.
* `workload_checks`: which checkers apply to a workload's history; two that apply must agree.
* `run_report`, `timeline`: what a person or a machine reads afterwards.
* `rotation`: one run after another over workloads and nemeses, within a time.

Everything is drawn from the seed; what real processes make of it is not repeatable, only likely.
"""
