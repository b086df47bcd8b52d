package llama_test

import "testing"

func limitMemory(*testing.T) {} // nothing of the kind is at hand
