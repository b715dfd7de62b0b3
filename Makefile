# The entry point to everything a developer runs; `make help` lists it.
# Needs only Python >= 3.11 with venv: no root, no system package. Every target makes its environment first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# Workers of the unit suites; tests that start processes share one worker (see tests/conftest.py).
WORKERS ?= 2
PYTEST_ARGS ?=
# Knobs of the long runs; each prints what it used.
PROGRAMS ?= 2000
KINDS ?= watch
MIRROR_KEYS ?= 10000
SEED ?=
ROUNDS ?= 3
SECONDS ?= 3
# A commit: `make bench` compares with this project at it instead of with etcd; writes bench/results/against.json.
AGAINST ?=
KILLS ?= 10
WRITES ?= 200000
CRASHES ?= 50
KEYS ?= 1000000
LEVEL ?= both
SEEDS ?= 0-
MINUTES ?= 1
DIR ?=
JEPSEN_MINUTES ?= 10
# How links between members are partitioned: auto takes network namespaces where they can be had, relays elsewhere.
NETWORK ?= auto
NODES ?= 3

.DEFAULT_GOAL := help
.PHONY: bench-catchup bench-python help env cluster demo test check fix bench profile bench-failover torture watch-torture bench-watch scale simulate mutants transcripts faults differential mirror jepsen jepsen-long jepsen-mutants bench-verify lock bench-locks bench-leases bench-grpc bench-start clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, set PYTHON=...") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

env: $(STAMP) ## make the development environment in .venv

cluster: $(STAMP) ## a three-node cluster in the foreground on ports 2379, 22379, 32379; Ctrl-C stops it
	$(BIN)/python cluster.py up --foreground

demo: $(STAMP) ## a tour that ends by itself: cluster up, writes, leader killed, everything read back
	$(BIN)/python cluster.py demo

test: $(STAMP) ## the whole test suite; with STRICT=1 a skip is a failure
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

check: $(STAMP) ## the gate that never writes: lint, format, types, house rules, generated code, lock
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict tools bench cluster.py
	$(BIN)/python -m pytest -q tests/test_tidy.py
	$(BIN)/python tools/genproto.py --check
	$(BIN)/python tools/configuration.py --check
	$(BIN)/python tools/lock.py --check

fix: $(STAMP) ## the gate that writes: sort, format, regenerate
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tools/genproto.py
	$(BIN)/python tools/configuration.py

bench: $(STAMP) ## the server beside etcd under etcd's own load generator (needs Go once); writes bench/results/server.json; SIDES=
	$(if $(AGAINST),$(BIN)/python -m bench.compare --rounds $(ROUNDS) --seconds $(SECONDS) --against $(AGAINST),$(BIN)/python -m bench.compiled --rounds $(ROUNDS) --seconds $(SECONDS) $(if $(SIDES),--sides $(SIDES)))

bench-python: $(STAMP) ## the same work from a Python client; writes bench/results/latest.json
	$(BIN)/python -m bench.compare --rounds $(ROUNDS) --seconds $(SECONDS)

profile: $(STAMP) ## where the leader spends its time under load; writes bench/results/profile.txt
	$(BIN)/python -m bench.profile

bench-failover: $(STAMP) ## kill -9 of the leader under load: the gap in writes; writes bench/results/failover.json
	$(BIN)/python -m bench.failover --kills $(KILLS)

bench-catchup: $(STAMP) ## a member down for WRITES writes catches up by snapshot under load; writes bench/results/catchup.json
	$(BIN)/python -m bench.catchup --rounds $(ROUNDS) --writes $(WRITES)

torture: $(STAMP) ## kill -9 of all three nodes under load, again and again; nothing acknowledged may be lost
	$(BIN)/python -m bench.torture --rounds $(CRASHES)

watch-torture: $(STAMP) ## watchers across killed leaders and restarts miss nothing; writes bench/results/watch-torture.json
	$(BIN)/python -m bench.watch_torture

bench-watch: $(STAMP) ## what ten thousand watchers of other keys cost a put; writes bench/results/watch.json
	$(BIN)/python -m bench.watch

bench-locks: $(STAMP) ## a contended lock with third-party clients, beside etcd; writes bench/results/locks.json
	$(BIN)/python -m bench.locks --rounds $(ROUNDS) --seconds $(SECONDS)

bench-grpc: $(STAMP) ## what a unary call costs the server's process, on each gRPC stack; writes bench/results/grpc.json
	$(BIN)/python -m bench.grpc_server --rounds $(ROUNDS) --seconds $(SECONDS)

bench-start: $(STAMP) ## how long the command and one and three members take to start, beside etcd; ROUNDS=7; writes bench/results/start.json
	$(BIN)/python -m bench.start --rounds $(ROUNDS)

bench-leases: $(STAMP) ## a hundred thousand leases that end together: how long it takes, how late the loop gets; writes bench/results/leases.json
	$(BIN)/python -m bench.leases

scale: $(STAMP) ## a million keys in three members: memory, restart, stalls, rolling restart; writes bench/results/scale.json
	$(BIN)/python -m bench.scale --keys $(KEYS)

simulate: $(STAMP) ## seeded clusters under faults, on all cores; LEVEL=core|node|both SEEDS=0-99|fresh MINUTES=10; writes bench/results/simulation.json
	$(BIN)/python -m kvstore.testing --level $(LEVEL) --seeds $(SEEDS) --minutes $(MINUTES) --output bench/results/simulation.json

mutants: $(STAMP) ## hunt every mutant with seeded runs until it is caught; writes tests/simulation/mutants.json
	$(BIN)/python -m tests.simulation.mutants

transcripts: $(STAMP) ## etcd-io/raft's interaction scripts of DIR=<folder> against this core; default KVSTORE_TESTDATA
	$(BIN)/python -m tests.core.transcripts $(DIR)

faults: $(STAMP) ## every storage fault on real processes and files (needs strace); writes bench/results/faults.json
	$(BIN)/python -m tests.storage.faults --jobs $(WORKERS) $(if $(SEED),--seed $(SEED))

differential: $(STAMP) ## random programs against this store and etcd, every reply compared; KINDS="watch lease lock restart" PROGRAMS=500
	$(BIN)/python -m tests.differential --programs $(PROGRAMS) --kinds $(KINDS) $(if $(SEED),--seed $(SEED))

mirror: $(STAMP) ## make-mirror from here to etcd and back, compared; MIRROR_KEYS=100000; writes bench/results/mirror.json
	$(BIN)/python -m bench.mirror --keys $(MIRROR_KEYS)

jepsen: $(STAMP) ## real members, real clients, faults, histories judged; JEPSEN_MINUTES=10 NODES=3 NETWORK=auto SEED=; writes bench/results/jepsen
	$(BIN)/python -m kvstore verify rotate --minutes $(JEPSEN_MINUTES) --nodes $(NODES) --network $(NETWORK) --directory bench/results/jepsen $(if $(SEED),--seed $(SEED))

jepsen-long: ## the same with seven members, for an hour
	$(MAKE) jepsen JEPSEN_MINUTES=60 NODES=7

jepsen-mutants: $(STAMP) ## hunt mutants in real members; writes tests/jepsen/mutants.json; SEED=
	$(BIN)/python -m tests.jepsen.mutants $(if $(SEED),--seed $(SEED))

bench-verify: $(STAMP) ## how long the checkers take over 100,000 operations; writes bench/results/verify.json
	$(BIN)/python -m bench.verify

lock: $(STAMP) ## resolve the development dependencies anew
	$(BIN)/python tools/lock.py

clean: ## remove the environment and everything built
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
