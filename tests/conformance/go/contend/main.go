// Tasks that contend for one Mutex of etcd's own Go client.
//
//	contend ENDPOINTS NAME TASKS SECONDS
//
// Each task has a session of its own and locks and unlocks until the time is over. No two may hold the
// mutex at once. It prints how often it was held.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	tasks, err := strconv.Atoi(os.Args[3])
	must(err)
	seconds, err := strconv.ParseFloat(os.Args[4], 64)
	must(err)
	c, err := clientv3.New(clientv3.Config{
		Endpoints: strings.Split(os.Args[1], ","), DialTimeout: 10 * time.Second,
	})
	must(err)
	defer c.Close()
	var holders, cycles atomic.Int64
	var begun, done sync.WaitGroup
	begin := make(chan time.Time)
	for i := 0; i < tasks; i++ {
		begun.Add(1)
		done.Add(1)
		go func() {
			defer done.Done()
			s, err := concurrency.NewSession(c)
			must(err)
			defer s.Close()
			m := concurrency.NewMutex(s, os.Args[2])
			begun.Done()
			end := <-begin
			for time.Now().Before(end) {
				must(m.Lock(context.Background()))
				if holders.Add(1) != 1 {
					panic("two hold the mutex")
				}
				holders.Add(-1)
				cycles.Add(1)
				must(m.Unlock(context.Background()))
			}
		}()
	}
	begun.Wait()
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	for i := 0; i < tasks; i++ {
		begin <- end
	}
	done.Wait()
	fmt.Println(cycles.Load())
}
