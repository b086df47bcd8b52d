//go:build race

package llama_test

// raceSlack is what the race detector's own records may grow by, in bytes.
const raceSlack = 64 << 20
