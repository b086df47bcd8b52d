package main

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

// even is a replica whose answers of 10 tokens take 10 steps of 10 ms each, whoever else is served. What is new in a
// prompt is read, 20 tokens at most.
func even(seats int) costs {
	c := costs{step: make([]float64, seats+1), cores: make([]float64, seats+1), firsts: []float64{0.01, 0.01, 0.01}, unread: []float64{20, 20, 20}}
	for k := 1; k <= seats; k++ {
		c.step[k], c.cores[k] = 0.01, 1
	}
	return c
}

// TestQueue compares one replica with one seat with the theory of such queues (M/D/1).
func TestQueue(t *testing.T) {
	const service, load = 0.1, 0.7
	f := fleet{costs: even(1), replicas: 1, perHost: 1, hostCPU: 1, seats: 1, cache: 1000, affinity: hashed}
	r := simulate(f, workload{rate: load / service, seconds: 20_000, turns: 1, question: 1, answer: 10, seed: 4})
	mean := 0.0
	for _, ms := range r.wholes {
		mean += ms / 1000 / float64(len(r.wholes))
	}
	require.InEpsilon(t, service+load*service/(2*(1-load)), mean, 0.03)
	require.InEpsilon(t, 10*load/service, r.TPS, 0.03)
	require.Equal(t, r, simulate(f, workload{rate: load / service, seconds: 20_000, turns: 1, question: 1, answer: 10, seed: 4}), "the same seed")
}

// TestAdd has the figures of two loads be those of their requests together.
func TestAdd(t *testing.T) {
	f := fleet{costs: even(1), replicas: 1, perHost: 1, hostCPU: 1, seats: 1, cache: 1000, affinity: hashed}
	one := simulate(f, workload{rate: 5, seconds: 100, turns: 1, question: 1, answer: 10, seed: 1})
	other := simulate(f, workload{rate: 9, seconds: 100, turns: 1, question: 1, answer: 10, seed: 2})
	var both result
	both.add(one)
	require.InEpsilon(t, one.TPS, both.TPS, 1e-9)
	require.InEpsilon(t, one.Whole95, both.Whole95, 1e-9)
	both.add(other)
	require.Equal(t, one.Requests+other.Requests, both.Requests)
	require.Greater(t, both.TPS, one.TPS)
	require.Less(t, both.TPS, other.TPS)
	require.Greater(t, both.Whole95, one.Whole95)
	require.Less(t, both.Whole95, other.Whole95)
}

// TestAffinity keeps conversations in caches by the hash, and loses them without.
func TestAffinity(t *testing.T) {
	l := workload{rate: 2, seconds: 500, turns: 3, question: 20, answer: 10, think: 1, seed: 1}
	share := map[affinity]float64{}
	for _, a := range []affinity{hashed, drawn, least} {
		f := fleet{costs: even(4), replicas: 10, perHost: 1, hostCPU: 1, seats: 4, cache: 1000, affinity: a}
		share[a] = simulate(f, l).Cached
	}
	require.InDelta(t, (30.+60.)/(20+50+80), share[hashed], 0.01)
	require.Less(t, share[drawn], 0.1)
	require.Less(t, share[least], 0.2)
}

// TestSharedMachine has two busy replicas that share one core take twice as long.
func TestSharedMachine(t *testing.T) {
	l := workload{closed: 2, seconds: 100, turns: 1, question: 1, answer: 10, seed: 1}
	f := fleet{costs: even(1), replicas: 2, perHost: 1, hostCPU: 1, seats: 1, cache: 100, affinity: least}
	apart := simulate(f, l)
	f.perHost = 2
	require.InEpsilon(t, apart.TPS/2, simulate(f, l).TPS, 0.1)
}

// TestClosedLoop gives back the speeds that the costs come from.
func TestClosedLoop(t *testing.T) {
	rows := func(behind float64) (rows []row) {
		for clients, tps := range map[int]float64{1: 300, 4: 450, 8: 500} {
			r := row{Model: "x", Clients: clients, TPS: tps, Prompt: 104, Answer: 64, CPU: 2, Read: 0.1, Behind: behind}
			if clients == 1 {
				r.Firsts, r.Unread = []float64{4, 8, 12, 6, 10, 14}, []float64{20, 20, 20, 20, 40, 60}
			}
			rows = append(rows, r)
		}
		return rows
	}
	tails := map[float64]float64{}
	for _, behind := range []float64{0, 4} {
		c, err := costsOf(rows(behind), "x", 8)
		require.NoError(t, err)
		for _, r := range rows(behind) {
			f := fleet{costs: c, replicas: 1, perHost: 1, hostCPU: math.Inf(1), seats: 8, cache: 10_000, affinity: hashed}
			got := simulate(f, workload{closed: r.Clients, seconds: 200, turns: chatTurns, question: 20, answer: 64, seed: 1})
			require.InEpsilon(t, r.TPS, got.TPS, 0.05, r.Clients)
			if r.Clients == 1 {
				tails[behind] = got.Whole95 / got.wholes[0]
			}
		}
	}
	require.Greater(t, tails[4], 1.1*tails[0], "an answer behind more tokens takes longer")
	_, err := costsOf(rows(0)[:1], "x", 8)
	require.ErrorContains(t, err, "no rows of x with 1 and 8 clients")
}
