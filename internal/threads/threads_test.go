package threads_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/threads"
)

// machine is a simulated one: what a token costs on its cores beside busy ones.
type machine struct {
	cores  int
	serial float64 // share of a token's time that more threads don't shorten
	random *rand.Rand
}

// token gives the time of a token on n threads beside busy cores, and how long
// its threads waited for others that did not run. Threads beyond the free cores
// share theirs with another program, and everyone waits for them.
func (m *machine) token(n, busy int) (took, stalled time.Duration) {
	alone := m.alone(n)
	seconds := alone
	switch free := max(m.cores-busy, 0); {
	case free == 0 && n == 1: // half of a core
		seconds *= 2
	case free == 0: // the scheduler moves threads about: some run while others wait
		seconds *= 1.6 + 0.8*m.random.Float64()
	case n > free:
		seconds *= 1.2 + 2*m.random.Float64()
	}
	if n > 1 {
		stalled = time.Duration((seconds - alone) * 0.8 * float64(n-1) * float64(time.Second))
	}
	return time.Duration(seconds * (0.97 + 0.06*m.random.Float64()) * float64(time.Second)), stalled
}

// alone is the time of a token on n threads of their own.
func (m *machine) alone(n int) float64 { return 0.020 * (m.serial + (1-m.serial)/float64(n)) }

// mean is the time of a token on n threads beside busy cores.
func (m *machine) mean(n, busy int) float64 {
	switch free := max(m.cores-busy, 0); {
	case free == 0 && n > 1:
		return 2 * m.alone(n)
	case free == 0 || n > free:
		return 2.2 * m.alone(n) * map[bool]float64{true: 2 / 2.2, false: 1}[n == 1]
	}
	return m.alone(n)
}

// best is the shortest mean of any fixed number of threads.
func (m *machine) best(busy int) float64 {
	best := math.Inf(1)
	for n := 1; n <= m.cores; n++ {
		best = min(best, m.mean(n, busy))
	}
	return best
}

// nobody says that no other program runs: what is known comes from tokens' times alone.
func nobody() int { return 0 }

// run decodes tokens and gives the seconds they took.
func (m *machine) run(c *threads.Controller, tokens, busy int) (seconds float64) {
	for range tokens {
		took, stalled := m.token(c.Threads(), busy)
		c.Observe(1, took, stalled)
		seconds += took.Seconds()
	}
	return seconds
}

// serials are the machines' shares: of a model that is computed, and of ones that
// are read from memory, which few cores do as fast as many.
var serials = []float64{0.1, 0.5, 0.85}

func eachMachine(t *testing.T, test func(t *testing.T, m *machine, c *threads.Controller)) {
	for _, cores := range []int{2, 3, 4, 6, 8, 16, 32} {
		for _, serial := range serials {
			for seed := range uint64(5) {
				t.Run(fmt.Sprintf("%d cores, %g serial, seed %d", cores, serial, seed), func(t *testing.T) {
					test(t, &machine{cores, serial, rand.New(rand.NewPCG(seed, 1))}, threads.New(cores, nobody))
				})
			}
		}
	}
}

// A machine that does nothing else is left alone: all threads for every token.
func TestAloneNothingIsTried(t *testing.T) {
	eachMachine(t, func(t *testing.T, m *machine, c *threads.Controller) {
		for range 1000 {
			require.Equal(t, m.cores, c.Threads())
			m.run(c, 1, 0)
		}
		require.Zero(t, c.Changes())
	})
}

// Tokens far shorter than the scheduler's turns: one thread's core is another program's every
// other turn. Most tokens see nothing of it; answers take as long as on one thread all the same.
func TestTinyTokensBesideABusyCore(t *testing.T) {
	for _, one := range []float64{0.0002, 0.0004, 0.001} { // seconds of a token on one thread
		for _, turn := range []float64{0.003, 0.004, 0.006} { // seconds
			c, now := threads.New(2, nobody), 0.0
			for now < 2 {
				took, stalled := one, 0.0
				if c.Threads() == 2 {
					took *= 0.6
					if place := math.Mod(now, 2*turn); place > turn {
						stalled = 2*turn - place
					}
				}
				now += took + stalled
				c.Observe(1, time.Duration((took+stalled)*float64(time.Second)), time.Duration(stalled*float64(time.Second)))
			}
			require.Equal(t, 1, c.Settled(), "%g s, turns of %g s", one, turn)
			require.LessOrEqual(t, c.Changes(), 1)
		}
	}
}

// A daemon that wakes up now and then costs no more than a hundredth.
func TestInterruptionsCostLittle(t *testing.T) {
	eachMachine(t, func(t *testing.T, m *machine, c *threads.Controller) {
		var took, fixed float64
		for i := range 1000 {
			busy := 0
			if i%50 == 7 {
				busy = 1
			}
			took += m.run(c, 1, busy)
			fixed += m.mean(m.cores, busy)
		}
		require.Less(t, took, 1.01*fixed*1.01) // the second hundredth is the simulation's own noise
	})
}

// Beside any number of busy cores, answers of 150 tokens take little longer, on
// average, than with the number of threads that would have been best, the search
// for it included; those that follow take less.
func TestBusyCoresCostLittle(t *testing.T) {
	for _, cores := range []int{2, 3, 4, 6, 8, 16, 32} {
		for _, serial := range serials {
			for busy := range cores + 1 {
				t.Run(fmt.Sprintf("%d cores, %g serial, %d busy", cores, serial, busy), func(t *testing.T) {
					const answers, tokens = 20, 150
					var first, second float64
					var settled []int
					m := &machine{cores, serial, rand.New(rand.NewPCG(1, 1))}
					for range answers {
						c := threads.New(cores, nobody)
						first += m.run(c, tokens, busy)
						second += m.run(c, tokens, busy)
						settled = append(settled, c.Settled())
					}
					best := answers * tokens * m.best(busy)
					require.Less(t, first, 1.25*best, "settled on %v", settled)
					require.Less(t, second, 1.15*best, "settled on %v", settled)
				})
			}
		}
	}
}

// When the others stop, all threads are back within some 200 tokens, and when
// they come, the number is right within 20.
func TestLoadComesAndGoes(t *testing.T) {
	eachMachine(t, func(t *testing.T, m *machine, c *threads.Controller) {
		for range 3 {
			took := m.run(c, 40, 1)
			require.Less(t, took, 1.3*40*m.best(1), "settled on %d", c.Settled())
			m.run(c, 300, 1)
			m.run(c, 200, 0)
			require.LessOrEqual(t, m.alone(c.Settled()), 1.02*m.alone(m.cores), "settled on %d", c.Settled())
		}
	})
}

// Two programs with as many threads as there are cores each come down to what
// there is room for.
func TestTwoPrograms(t *testing.T) {
	eachMachine(t, func(t *testing.T, m *machine, a *threads.Controller) {
		b := threads.New(m.cores, nobody)
		var took float64
		for i := range 600 {
			na, nb := a.Threads(), b.Threads()
			for _, c := range []*threads.Controller{a, b} {
				alone := m.alone(c.Threads())
				seconds := alone
				if all := float64(na+nb) / float64(m.cores); all > 1 { // both move over all cores
					seconds *= all
					if c.Threads() > 1 {
						seconds *= 1 + m.random.Float64()
					}
				}
				stalled := (seconds - alone) * float64(c.Threads()-1)
				c.Observe(1, time.Duration(seconds*float64(time.Second)), time.Duration(stalled*float64(time.Second)))
				if i >= 100 {
					took += seconds / 1000
				}
			}
		}
		fair := m.alone(max(m.cores/2, 1))
		require.Less(t, took, 1.25*fair, "settled on %d and %d", a.Settled(), b.Settled())
	})
}

func TestLittleToChoose(t *testing.T) {
	c := threads.New(1, nobody)
	for range 100 {
		c.Observe(1, time.Second, time.Second)
		require.Equal(t, 1, c.Threads())
	}
	c = threads.New(4, nobody)
	c.Observe(0, time.Second, 0) // nothing was decoded
	c.Observe(1, 0, 0)
	require.Equal(t, 4, c.Threads())
}

// Where tokens are so short that meeting costs threads more than it brings, fewer of them are
// tried once, and kept where they are faster.
func TestTinyTokensOnAFreeMachine(t *testing.T) {
	for _, gain := range []float64{0.7, 1.7} { // of two threads over one
		c, took := threads.New(2, nobody), 0.0
		for range 200 {
			token := 0.001
			if c.Threads() == 2 {
				token /= gain
			}
			took += token
			c.Observe(1, time.Duration(token*float64(time.Second)), 0)
		}
		require.Equal(t, gain > 1, c.Settled() == 2)
		require.Less(t, took, 1.1*200*0.001/max(gain, 1))
	}
}

func TestBegin(t *testing.T) {
	others := 3
	c := threads.New(4, func() int { return others })
	require.Equal(t, 1, c.Begin(others))
	for range 3000 {
		c.Observe(1, time.Millisecond, 0)
		require.Equal(t, 1, c.Threads(), "more would need cores that others use")
	}
	others = 0
	for range 1000 {
		c.Observe(1, time.Millisecond/time.Duration(c.Threads()), 0)
	}
	require.Equal(t, 4, c.Settled())
}
