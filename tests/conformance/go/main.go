// The calls of a program on etcd's own Go client and its concurrency package.
//
//	conformance calls ENDPOINTS PREFIX      every group once; ENDPOINTS are separated by commas
//	conformance failover ENDPOINTS PREFIX   asks for the leader's death by the line KILL and goes on
//
// It asserts; it prints one line per group that passed and "all passed" in the end.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

const patience = 30 * time.Second

type group struct {
	name string
	run  func(ctx context.Context, c *clientv3.Client, prefix string)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func check(ok bool, format string, args ...any) {
	if !ok {
		panic(fmt.Sprintf(format, args...))
	}
}

func dial(endpoints string) *clientv3.Client {
	c, err := clientv3.New(clientv3.Config{Endpoints: strings.Split(endpoints, ","), DialTimeout: patience})
	must(err)
	return c
}

func main() {
	mode, endpoints, prefix := os.Args[1], os.Args[2], os.Args[3]
	c := dial(endpoints)
	defer c.Close()
	groups := []group{
		{"keys", keys}, {"transactions", transactions}, {"watches", watches}, {"leases", leases},
		{"locks", locks}, {"elections", elections}, {"memory", memory}, {"compaction", compaction},
	}
	if mode == "failover" {
		groups = []group{{"failover", failover}}
	}
	for _, g := range groups {
		ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
		g.run(ctx, c, prefix+g.name+"/")
		cancel()
		fmt.Println(g.name, "passed")
	}
	fmt.Println("all passed")
}

func keys(ctx context.Context, c *clientv3.Client, p string) {
	first, err := c.Put(ctx, p+"a", "1")
	must(err)
	second, err := c.Put(ctx, p+"a", "2", clientv3.WithPrevKV())
	must(err)
	check(second.Header.Revision > first.Header.Revision, "revisions do not grow")
	check(string(second.PrevKv.Value) == "1", "previous value %q", second.PrevKv.Value)
	got, err := c.Get(ctx, p+"a")
	must(err)
	kv := got.Kvs[0]
	check(string(kv.Value) == "2" && kv.Version == 2, "got %v", kv)
	check(kv.CreateRevision == first.Header.Revision && kv.ModRevision == second.Header.Revision, "got %v", kv)
	past, err := c.Get(ctx, p+"a", clientv3.WithRev(first.Header.Revision))
	must(err)
	check(string(past.Kvs[0].Value) == "1", "the past is %v", past.Kvs)
	for _, name := range []string{"d", "c", "b"} {
		_, err = c.Put(ctx, p+name, name)
		must(err)
	}
	sorted, err := c.Get(ctx, p, clientv3.WithPrefix(), clientv3.WithLimit(2),
		clientv3.WithSort(clientv3.SortByValue, clientv3.SortDescend))
	must(err)
	check(sorted.Count == 4 && sorted.More && string(sorted.Kvs[0].Value) == "d", "sorted %v", sorted)
	count, err := c.Get(ctx, p, clientv3.WithPrefix(), clientv3.WithCountOnly())
	must(err)
	check(count.Count == 4 && len(count.Kvs) == 0, "count %v", count)
	last, err := c.Get(ctx, p, clientv3.WithLastCreate()...)
	must(err)
	check(string(last.Kvs[0].Key) == p+"b", "last created %v", last.Kvs)
	_, err = c.Put(ctx, "", "x")
	check(errors.Is(err, rpctypes.ErrEmptyKey), "empty key: %v", err)
	_, err = c.Get(ctx, p+"a", clientv3.WithRev(got.Header.Revision+1_000_000))
	check(errors.Is(err, rpctypes.ErrFutureRev), "future: %v", err)
	_, err = c.Put(ctx, p+"a", "x", clientv3.WithLease(987654321))
	check(errors.Is(err, rpctypes.ErrLeaseNotFound), "no lease: %v", err)
	gone, err := c.Delete(ctx, p, clientv3.WithPrefix(), clientv3.WithPrevKV())
	must(err)
	check(gone.Deleted == 4 && len(gone.PrevKvs) == 4, "deleted %v", gone)
}

func transactions(ctx context.Context, c *clientv3.Client, p string) {
	try := func(value string) *clientv3.TxnResponse {
		done, err := c.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision(p+"t"), "=", 0)).
			Then(clientv3.OpPut(p+"t", value), clientv3.OpGet(p+"t")).
			Else(clientv3.OpGet(p + "t")).Commit()
		must(err)
		return done
	}
	won, lost := try("won"), try("lost")
	check(won.Succeeded && !lost.Succeeded, "%v %v", won, lost)
	check(string(won.Responses[1].GetResponseRange().Kvs[0].Value) == "won", "%v", won)
	check(string(lost.Responses[0].GetResponseRange().Kvs[0].Value) == "won", "%v", lost)
	nested := clientv3.OpTxn(
		[]clientv3.Cmp{clientv3.Compare(clientv3.Value(p+"t"), "=", "won")},
		[]clientv3.Op{clientv3.OpPut(p+"inner", "1")}, nil)
	done, err := c.Txn(ctx).Then(nested, clientv3.OpDelete(p+"t")).Commit()
	must(err)
	check(done.Responses[0].GetResponseTxn().Succeeded, "nested %v", done)
	check(done.Responses[1].GetResponseDeleteRange().Deleted == 1, "delete %v", done)
	_, err = c.Txn(ctx).Then(clientv3.OpPut(p+"x", "1"), clientv3.OpPut(p+"x", "2")).Commit()
	check(errors.Is(err, rpctypes.ErrDuplicateKey), "duplicate: %v", err)
	many := make([]clientv3.Op, 129)
	for i := range many {
		many[i] = clientv3.OpGet(p)
	}
	_, err = c.Txn(ctx).Then(many...).Commit()
	check(errors.Is(err, rpctypes.ErrTooManyOps), "too many: %v", err)
}

// next returns the next events of a watch, whatever is between them.
func next(ctx context.Context, ch clientv3.WatchChan, n int) []*clientv3.Event {
	var found []*clientv3.Event
	for len(found) < n {
		select {
		case <-ctx.Done():
			panic(fmt.Sprintf("%d of %d events came", len(found), n))
		case r, ok := <-ch:
			check(ok, "the watch ended")
			must(r.Err())
			found = append(found, r.Events...)
		}
	}
	return found
}

func watches(ctx context.Context, c *clientv3.Client, p string) {
	before, err := c.Put(ctx, p+"a", "0")
	must(err)
	// not simply from now on: the member asked may have to apply that put still
	live := c.Watch(ctx, p, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithCreatedNotify(),
		clientv3.WithRev(before.Header.Revision+1))
	created := <-live
	check(created.Created, "first response %v", created)
	_, err = c.Put(ctx, p+"a", "1")
	must(err)
	_, err = c.Txn(ctx).Then(clientv3.OpPut(p+"b", "1"), clientv3.OpPut(p+"c", "1")).Commit()
	must(err)
	_, err = c.Delete(ctx, p+"a")
	must(err)
	events := next(ctx, live, 4)
	check(events[0].IsModify() && string(events[0].PrevKv.Value) == "0", "first %v", events[0])
	check(events[1].IsCreate() && events[1].Kv.ModRevision == events[2].Kv.ModRevision, "one revision %v", events)
	check(events[3].Type == clientv3.EventTypeDelete && string(events[3].PrevKv.Value) == "1", "last %v", events[3])
	again := next(ctx, c.Watch(ctx, p, clientv3.WithPrefix(), clientv3.WithRev(before.Header.Revision)), 5)
	check(again[0].Kv.ModRevision == before.Header.Revision && len(again) == 5, "replayed %v", again)
	deletes := next(ctx, c.Watch(ctx, p, clientv3.WithPrefix(), clientv3.WithFilterPut(),
		clientv3.WithRev(before.Header.Revision)), 1)
	check(deletes[0].Type == clientv3.EventTypeDelete, "filtered %v", deletes)
	must(c.RequestProgress(ctx))
	// each watch of the connection receives it; this one has nothing else to come
	told := <-live
	check(told.IsProgressNotify() && told.Header.Revision >= events[3].Kv.ModRevision, "progress %v", told)
	stop, cancel := context.WithCancel(ctx)
	ended := c.Watch(stop, p)
	cancel()
	_, open := <-ended
	check(!open, "a cancelled watch goes on")
}

func leases(ctx context.Context, c *clientv3.Client, p string) {
	grant, err := c.Grant(ctx, 60)
	must(err)
	for _, name := range []string{"b", "a"} {
		_, err = c.Put(ctx, p+name, "1", clientv3.WithLease(grant.ID))
		must(err)
	}
	left, err := c.TimeToLive(ctx, grant.ID, clientv3.WithAttachedKeys())
	must(err)
	check(left.GrantedTTL == 60 && left.TTL > 50 && len(left.Keys) == 2, "left %v", left)
	alive, err := c.KeepAlive(ctx, grant.ID)
	must(err)
	kept := <-alive
	check(kept.TTL == 60, "kept alive %v", kept)
	all, err := c.Leases(ctx)
	must(err)
	known := false
	for _, one := range all.Leases {
		known = known || one.ID == grant.ID
	}
	check(known, "leases %v", all)
	_, err = c.Revoke(ctx, grant.ID)
	must(err)
	got, err := c.Get(ctx, p, clientv3.WithPrefix())
	must(err)
	check(got.Count == 0, "after the lease %v", got)
	gone, err := c.TimeToLive(ctx, grant.ID)
	must(err)
	check(gone.TTL == -1, "gone %v", gone)
	_, err = c.KeepAliveOnce(ctx, grant.ID)
	check(errors.Is(err, rpctypes.ErrLeaseNotFound), "keepalive: %v", err)
	_, err = c.Revoke(ctx, grant.ID)
	check(errors.Is(err, rpctypes.ErrLeaseNotFound), "revoke: %v", err)
	short, err := c.Grant(ctx, 1)
	must(err)
	ends := c.Watch(ctx, p+"short", clientv3.WithFilterPut())
	_, err = c.Put(ctx, p+"short", "1", clientv3.WithLease(short.ID))
	must(err)
	next(ctx, ends, 1)
}

func session(c *clientv3.Client, ttl int) *concurrency.Session {
	s, err := concurrency.NewSession(c, concurrency.WithTTL(ttl))
	must(err)
	return s
}

func locks(ctx context.Context, c *clientv3.Client, p string) {
	one, two := session(c, 30), session(c, 30)
	defer two.Close()
	first, second := concurrency.NewMutex(one, p+"m"), concurrency.NewMutex(two, p+"m")
	must(first.Lock(ctx))
	check(errors.Is(second.TryLock(ctx), concurrency.ErrLocked), "a held lock was taken")
	guarded, err := c.Txn(ctx).If(first.IsOwner()).Then(clientv3.OpPut(p+"guarded", "1")).Commit()
	must(err)
	check(guarded.Succeeded, "the holder does not hold the lock")
	waited := make(chan error, 1)
	go func() { waited <- second.Lock(ctx) }()
	queue := c.Watch(ctx, p+"m/", clientv3.WithPrefix(), clientv3.WithRev(guarded.Header.Revision))
	next(ctx, queue, 1)
	must(first.Unlock(ctx))
	must(<-waited)
	guarded, err = c.Txn(ctx).If(first.IsOwner()).Then(clientv3.OpPut(p+"guarded", "2")).Commit()
	must(err)
	check(!guarded.Succeeded, "the lock is held after its unlock")
	check(errors.Is(first.TryLock(ctx), concurrency.ErrLocked), "a lock was taken that another holds")
	must(second.Unlock(ctx))
	// the end of a session frees its lock
	must(first.Lock(ctx))
	must(one.Close())
	must(second.Lock(ctx))
	must(second.Unlock(ctx))
	counted(ctx, c, p)
}

// counted lets several sessions add to one number under one lock: no addition may be lost.
func counted(ctx context.Context, c *clientv3.Client, p string) {
	const workers, rounds = 4, 5
	_, err := c.Put(ctx, p+"n", "0")
	must(err)
	var all sync.WaitGroup
	for worker := 0; worker < workers; worker++ {
		all.Add(1)
		go func() {
			defer all.Done()
			s := session(c, 30)
			defer s.Close()
			mutex := concurrency.NewMutex(s, p+"counter")
			for round := 0; round < rounds; round++ {
				must(mutex.Lock(ctx))
				got, err := c.Get(ctx, p+"n")
				must(err)
				n := 0
				fmt.Sscan(string(got.Kvs[0].Value), &n)
				_, err = c.Put(ctx, p+"n", fmt.Sprint(n+1))
				must(err)
				must(mutex.Unlock(ctx))
			}
		}()
	}
	all.Wait()
	got, err := c.Get(ctx, p+"n")
	must(err)
	check(string(got.Kvs[0].Value) == fmt.Sprint(workers*rounds), "counted %s", got.Kvs[0].Value)
}

func elections(ctx context.Context, c *clientv3.Client, p string) {
	one, two := session(c, 30), session(c, 30)
	defer one.Close()
	defer two.Close()
	first, second := concurrency.NewElection(one, p+"e"), concurrency.NewElection(two, p+"e")
	_, err := first.Leader(ctx)
	check(errors.Is(err, concurrency.ErrElectionNoLeader), "no leader: %v", err)
	seen := second.Observe(ctx)
	must(first.Campaign(ctx, "one"))
	check(string((<-seen).Kvs[0].Value) == "one", "observed another")
	waited := make(chan error, 1)
	go func() { waited <- second.Campaign(ctx, "two") }()
	must(first.Proclaim(ctx, "one again"))
	check(string((<-seen).Kvs[0].Value) == "one again", "observed another proclamation")
	leader, err := first.Leader(ctx)
	must(err)
	check(string(leader.Kvs[0].Value) == "one again", "leader %v", leader)
	must(first.Resign(ctx))
	must(<-waited)
	check(string((<-seen).Kvs[0].Value) == "two", "observed another successor")
	check(errors.Is(first.Proclaim(ctx, "late"), concurrency.ErrElectionNotLeader), "who resigned proclaims")
	must(second.Resign(ctx))
}

// memory moves amounts between accounts by software transactional memory.
func memory(ctx context.Context, c *clientv3.Client, p string) {
	const accounts = 3
	name := func(i int) string { return fmt.Sprint(p, i%accounts) }
	for i := 0; i < accounts; i++ {
		_, err := c.Put(ctx, name(i), "100")
		must(err)
	}
	var all sync.WaitGroup
	for i := 0; i < 2*accounts; i++ {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			_, err := concurrency.NewSTM(c, func(s concurrency.STM) error {
				var from, to int
				fmt.Sscan(s.Get(name(i)), &from)
				fmt.Sscan(s.Get(name(i+1)), &to)
				s.Put(name(i), fmt.Sprint(from-7))
				s.Put(name(i+1), fmt.Sprint(to+7))
				return nil
			}, concurrency.WithAbortContext(ctx))
			must(err)
		}(i)
	}
	all.Wait()
	got, err := c.Get(ctx, p, clientv3.WithPrefix())
	must(err)
	total := 0
	for _, kv := range got.Kvs {
		n := 0
		fmt.Sscan(string(kv.Value), &n)
		total += n
	}
	check(total == 100*accounts, "the total is %d", total)
}

func compaction(ctx context.Context, c *clientv3.Client, p string) {
	old, err := c.Put(ctx, p+"z", "1")
	must(err)
	now, err := c.Put(ctx, p+"z", "2")
	must(err)
	_, err = c.Compact(ctx, now.Header.Revision, clientv3.WithCompactPhysical())
	must(err)
	_, err = c.Compact(ctx, old.Header.Revision)
	check(errors.Is(err, rpctypes.ErrCompacted), "compacted: %v", err)
	_, err = c.Get(ctx, p+"z", clientv3.WithRev(old.Header.Revision))
	check(errors.Is(err, rpctypes.ErrCompacted), "compacted: %v", err)
	r := <-c.Watch(ctx, p+"z", clientv3.WithRev(old.Header.Revision))
	check(errors.Is(r.Err(), rpctypes.ErrCompacted) && r.CompactRevision >= now.Header.Revision, "watch: %v", r)
	r = <-c.Watch(ctx, p+"z", clientv3.WithRev(now.Header.Revision))
	check(len(r.Events) == 1 && r.Err() == nil, "watch at the compacted revision: %v", r)
}

// failover writes on while the leader dies: a watch, a lease, a lock and a waiter live through it.
func failover(ctx context.Context, c *clientv3.Client, p string) {
	const writes = 100
	one, two := session(c, 60), session(c, 60)
	defer one.Close()
	defer two.Close()
	held, wanted := concurrency.NewMutex(one, p+"m"), concurrency.NewMutex(two, p+"m")
	must(held.Lock(ctx))
	waited := make(chan error, 1)
	go func() { waited <- wanted.Lock(ctx) }()
	election := concurrency.NewElection(one, p+"e")
	must(election.Campaign(ctx, "before"))
	seen := election.Observe(ctx)
	<-seen
	watch := c.Watch(ctx, p+"k", clientv3.WithPrefix(), clientv3.WithRev(held.Header().Revision))
	for i := 0; i < writes; i++ {
		if i == writes/2 {
			fmt.Println("KILL")
			_, err := bufio.NewReader(os.Stdin).ReadString('\n')
			must(err)
		}
		key := fmt.Sprintf("%sk%03d", p, i)
		for { // a put of unknown outcome may be repeated: the key is its own
			_, err := c.Put(ctx, key, "1")
			if err == nil {
				break
			}
			check(ctx.Err() == nil, "no put after the leader's death: %v", err)
			fmt.Println("put again after:", err)
		}
	}
	got, err := c.Get(ctx, p+"k", clientv3.WithPrefix())
	must(err)
	check(got.Count == writes, "%d of %d keys are there", got.Count, writes)
	total := 0
	for _, kv := range got.Kvs {
		total += int(kv.Version)
	}
	events := next(ctx, watch, total)
	check(len(events) == total, "%d events for %d writes", len(events), total)
	for _, kv := range got.Kvs {
		for version := int64(1); version <= kv.Version; version++ {
			event := events[0]
			events = events[1:]
			check(string(event.Kv.Key) == string(kv.Key) && event.Kv.Version == version, "%v, not %v", event, kv)
			check(version < kv.Version || event.Kv.ModRevision == kv.ModRevision, "%v, not %v", event, kv)
		}
	}
	must(election.Proclaim(ctx, "after"))
	check(string((<-seen).Kvs[0].Value) == "after", "observed another")
	guarded, err := c.Txn(ctx).If(held.IsOwner()).Then(clientv3.OpPut(p+"guarded", "1")).Commit()
	must(err)
	check(guarded.Succeeded, "the lock was lost")
	must(held.Unlock(ctx))
	must(<-waited)
}
