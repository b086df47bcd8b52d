//go:build !race

package llama_test

const raceSlack = 0
