package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"syscall"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/store/redis"
)

// brokerCommand makes this program the broker instead.
const brokerCommand = "broker"

// at is where the broker's listeners are; it says so on its standard output.
type at struct{ Issuer, Broker, Ops, Operator string }

// runBroker is one replica in a process of its own, until SIGTERM. Its arguments are the address of
// its Workload API, the URL of Redis, its folder, and the file for a CPU profile. SIGUSR1 begins the
// profile and SIGUSR2 ends it.
func runBroker(args []string) error {
	if len(args) != 4 {
		return errors.New("this is for the benchmark itself")
	}
	socket, url, dir, profile := args[0], args[1], args[2], args[3]
	server.TuneMemory()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	inventory, err := registry.Load(filepath.Join(dir, inventoryFile))
	if err != nil {
		return err
	}
	store, err := redis.New(ctx, redis.Config{URL: url, Logger: log})
	if err != nil {
		return err
	}
	defer store.Close()
	source := identity.FromWorkloadAPI(socket, log)
	s, err := server.New(server.Config{
		WorkloadAddr: "127.0.0.1:0", PublicAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", OperatorAddr: "127.0.0.1:0",
		Operators: httpapi.Operators{name("operator").String(): broker.RoleAdmin},
		Identity:  source, Registry: inventory, Store: store, AuditLog: filepath.Join(dir, "audit.jsonl"), Logger: log,
		// All requests come from one workload, as fast as they can.
		Limits: httpapi.Limits{IssueRate: httpapi.MaxRate, IssueBurst: httpapi.MaxRate, Rate: httpapi.MaxRate, Burst: httpapi.MaxRate},
	})
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	if err := source.Wait(ctx); err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(at{s.Issuer(), s.BrokerURL(), "http://" + s.OpsAddr(), "https://" + s.Listening()["operator"]}); err != nil {
		return err
	}
	if profile != "" {
		if err := profileOnSignal(ctx, profile); err != nil {
			return err
		}
	}
	return <-done
}

func profileOnSignal(ctx context.Context, path string) error {
	begin, end := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(begin, syscall.SIGUSR1)
	signal.Notify(end, syscall.SIGUSR2)
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("the profile: %w", err)
	}
	defer file.Close()
	select {
	case <-begin:
	case <-ctx.Done():
		return nil
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	select {
	case <-end:
	case <-ctx.Done():
	}
	return nil
}
