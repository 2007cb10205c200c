// Asks a gRPC server many times, with bytes that it does not look at, and prints what became of it.
//
// Usage: client ADDRESS METHOD FILE CALLS AT_A_TIME DEADLINE_SECONDS
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

type raw struct{}

func (raw) Marshal(v interface{}) ([]byte, error) { return *(v.(*[]byte)), nil }
func (raw) Unmarshal(data []byte, v interface{}) error {
	*(v.(*[]byte)) = append([]byte(nil), data...)
	return nil
}
func (raw) Name() string { return "proto" }

func main() {
	address, method := os.Args[1], os.Args[2]
	request, err := os.ReadFile(os.Args[3])
	if err != nil {
		panic(err)
	}
	calls, _ := strconv.Atoi(os.Args[4])
	most, _ := strconv.Atoi(os.Args[5])
	seconds, _ := strconv.ParseFloat(os.Args[6], 64)
	channel, err := grpc.Dial(address, grpc.WithInsecure(), grpc.WithDefaultCallOptions(
		grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)))
	if err != nil {
		panic(err)
	}
	defer channel.Close()
	var lock sync.Mutex
	codes, texts, sizes := map[string]int{}, map[string]int{}, map[string]int{}
	next := make(chan struct{}, calls)
	for n := 0; n < calls; n++ {
		next <- struct{}{}
	}
	close(next)
	var all sync.WaitGroup
	for n := 0; n < most; n++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for range next {
				within, cancel := context.WithTimeout(
					context.Background(), time.Duration(seconds*float64(time.Second)))
				var answer []byte
				err := channel.Invoke(within, method, &request, &answer)
				cancel()
				said := status.Convert(err)
				lock.Lock()
				codes[strconv.Itoa(int(said.Code()))]++
				texts[said.Message()]++
				if err == nil {
					sizes[strconv.Itoa(len(answer))]++
				}
				lock.Unlock()
			}
		}()
	}
	all.Wait()
	out, _ := json.Marshal(map[string]interface{}{"codes": codes, "texts": texts, "sizes": sizes})
	fmt.Println(string(out))
}
