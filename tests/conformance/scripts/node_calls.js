// The calls of the npm package etcd3: keys, ranges, transactions, watches, leases, locks, elections.
//
//   node node_calls.js calls ENDPOINTS PREFIX       every group once; ENDPOINTS are separated by commas
//   node node_calls.js failover ENDPOINTS PREFIX    asks for the leader's death by the line KILL and goes on
"use strict";

const assert = require("assert");
const readline = require("readline");
const { once } = require("events");
const { Etcd3, EtcdLockFailedError } = require("etcd3");

const [mode, endpoints, root] = process.argv.slice(2);
const PATIENCE_MS = 30000;

const groups = {
  async keys(client, p) {
    assert.strictEqual(await client.get(p + "none").string(), null);
    const first = await client.put(p + "a").value("1");
    const second = await client.put(p + "a").value("2").getPrevious();
    assert.strictEqual(second.value.toString(), "1");
    const got = await client.get(p + "a").exec();
    assert.strictEqual(got.kvs[0].value.toString(), "2");
    assert.strictEqual(got.kvs[0].version, "2");
    assert.strictEqual(got.kvs[0].create_revision, first.header.revision);
    assert.strictEqual(await client.get(p + "a").revision(first.header.revision).string(), "1");
    assert.strictEqual(await client.get(p + "a").number(), 2);
    const gone = await client.delete().key(p + "a").getPrevious();
    assert.strictEqual(gone[0].value.toString(), "2");
    assert.strictEqual((await client.delete().key(p + "a")).deleted, "0");
  },

  async ranges(client, p) {
    for (const name of ["c", "a", "b"]) await client.put(p + name).value(name + name);
    const all = await client.getAll().prefix(p).strings();
    assert.deepStrictEqual(all, { [p + "a"]: "aa", [p + "b"]: "bb", [p + "c"]: "cc" });
    const names = await client.getAll().prefix(p).sort("Value", "Descend").limit(2).keys();
    assert.deepStrictEqual(names, [p + "c", p + "b"]);
    assert.strictEqual(await client.getAll().prefix(p).count(), 3);
    assert.strictEqual((await client.delete().prefix(p)).deleted, "3");
  },

  async transactions(client, p) {
    const attempt = (value) =>
      client
        .if(p + "t", "Create", "==", 0)
        .then(client.put(p + "t").value(value))
        .else(client.get(p + "t"))
        .commit();
    assert.strictEqual((await attempt("won")).succeeded, true);
    const lost = await attempt("lost");
    assert.strictEqual(lost.succeeded, false);
    assert.strictEqual(lost.responses[0].response_range.kvs[0].value.toString(), "won");
    await client.put(p + "n").value(1);
    const add = () =>
      client.stm().transact(async (tx) => {
        await tx.put(p + "n").value((await tx.get(p + "n").number()) + 1);
      });
    await Promise.all([add(), add(), add()]);
    assert.strictEqual(await client.get(p + "n").number(), 4);
  },

  async watches(client, p) {
    const first = await client.put(p + "a").value("0");
    // not simply from now on: the member asked may have to apply that put still
    const start = Number(first.header.revision) + 1;
    const watcher = await client.watch().prefix(p).withPreviousKV().startRevision(start).create();
    const seen = collect(watcher);
    await client.put(p + "a").value("1");
    await client.delete().key(p + "a");
    await seen.until(2);
    assert.deepStrictEqual(
      seen.events.map((one) => [one.type, one.kv.key.toString(), one.prev_kv.value.toString()]),
      [["Put", p + "a", "0"], ["Delete", p + "a", "1"]],
    );
    const replay = collect(await client.watch().prefix(p).startRevision(first.header.revision).create());
    await replay.until(3);
    assert.deepStrictEqual(replay.events.map((one) => one.type), ["Put", "Put", "Delete"]);
    const kept = collect(
      await client.watch().prefix(p).startRevision(first.header.revision).only("delete").create(),
    );
    await kept.until(1);
    assert.strictEqual(kept.events[0].type, "Delete");
    await watcher.cancel();
    await client.put(p + "b").value("1");
    await replay.until(4);
    assert.strictEqual(seen.events.length, 2);
  },

  async leases(client, p) {
    const lease = client.lease(30, { autoKeepAlive: false });
    const id = await lease.grant();
    await lease.put(p + "a").value("1");
    assert.strictEqual((await client.get(p + "a").exec()).kvs[0].lease, id);
    await lease.keepaliveOnce();
    const left = await client.leaseClient.leaseTimeToLive({ ID: id, keys: true });
    assert.strictEqual(left.grantedTTL, "30");
    assert.deepStrictEqual(left.keys.map(String), [p + "a"]);
    await lease.revoke();
    assert.strictEqual(await client.get(p + "a").string(), null);
    assert.strictEqual((await client.leaseClient.leaseTimeToLive({ ID: id })).TTL, "-1");
    await assert.rejects(() => client.put(p + "a").value("1").lease(id).exec(), /requested lease not found/);
    const short = client.lease(1, { autoKeepAlive: false });
    const ends = collect(await client.watch().key(p + "short").only("delete").create());
    await short.put(p + "short").value("1");
    await ends.until(1);
  },

  async locks(client, p) {
    const first = client.lock(p + "m").ttl(30);
    await first.acquire();
    await assert.rejects(() => client.lock(p + "m").acquire(), EtcdLockFailedError);
    await first.release();
    assert.strictEqual(await client.lock(p + "m").do(async () => "held"), "held");
  },

  async elections(client, p) {
    const election = client.election(p + "e", 30);
    const one = election.campaign("one");
    await once(one, "elected");
    assert.strictEqual(await election.leader(), "one");
    const two = election.campaign("two");
    const observer = await election.observe();
    assert.strictEqual(observer.leader(), "one");
    await one.proclaim("one again");
    await until(() => observer.leader() === "one again", "the proclamation");
    const elected = once(two, "elected");
    await one.resign();
    await elected;
    await until(() => observer.leader() === "two", "the successor");
    await two.resign();
    await observer.cancel();
  },

  async refusals(client, p) {
    await assert.rejects(() => client.put("").value("1").exec(), /etcdserver: key is not provided/);
    await assert.rejects(
      () => client.get(p + "a").revision(2 ** 40).exec(),
      /etcdserver: mvcc: required revision is a future revision/,
    );
  },
};

async function failover(client, p) {
  const writes = 60;
  const lease = client.lease(60);
  await lease.put(p + "leased").value("1");
  const lock = client.lock(p + "m").ttl(60);
  await lock.acquire();
  const campaign = client.election(p + "e", 60).campaign("me");
  await once(campaign, "elected");
  const seen = collect(await client.watch().prefix(p + "k").create());
  const names = [];
  for (let i = 0; i < writes; i++) {
    if (i === writes / 2) await kill();
    names.push(`${p}k${String(i).padStart(3, "0")}`);
    // a put of unknown outcome may be repeated: the key is its own
    const deadline = Date.now() + PATIENCE_MS;
    for (;;) {
      try {
        await client.put(names[i]).value("1");
        break;
      } catch (error) {
        assert(Date.now() < deadline, `no put after the leader's death: ${error}`);
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
  }
  const all = await client.getAll().prefix(p + "k").exec();
  const total = all.kvs.reduce((sum, kv) => sum + Number(kv.version), 0);
  assert.deepStrictEqual(all.kvs.map((kv) => kv.key.toString()), names);
  await seen.until(total);
  const revisions = seen.events.map((one) => Number(one.kv.mod_revision));
  assert.deepStrictEqual(revisions, [...revisions].sort((a, b) => a - b));
  assert.strictEqual(new Set(revisions).size, total);
  assert.deepStrictEqual([...new Set(seen.events.map((one) => one.kv.key.toString()))], names);
  assert.strictEqual(await client.get(p + "leased").string(), "1");
  await lease.keepaliveOnce();
  await campaign.proclaim("still me");
  await assert.rejects(() => client.lock(p + "m").acquire(), EtcdLockFailedError);
  await lock.release();
  await campaign.resign();
  await lease.revoke();
}

async function kill() {
  const lines = readline.createInterface({ input: process.stdin });
  console.log("KILL");
  await once(lines, "line");
  lines.close();
}

async function until(condition, what) {
  const deadline = Date.now() + PATIENCE_MS;
  while (!condition()) {
    assert(Date.now() < deadline, `waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

function collect(watcher) {
  const events = [];
  watcher.on("data", (response) => events.push(...response.events));
  return { events, until: (count) => until(() => events.length >= count, `${count} events`) };
}

async function main() {
  const client = new Etcd3({ hosts: endpoints.split(",").map((one) => `http://${one}`) });
  const chosen = mode === "failover" ? { failover } : groups;
  for (const [name, run] of Object.entries(chosen)) {
    await run(client, `${root}${name}/`);
    console.log(name, "passed");
  }
  client.close();
  console.log("all passed");
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
