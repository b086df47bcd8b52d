package chat

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/llama"
)

// What the graph refuses, and only that, ends an answer's shortlist.
func TestShortlistThatTheGraphRefuses(t *testing.T) {
	refusal := fmt.Errorf("%w: the shortlist was made for another model", llama.ErrMask)
	l := listing{size: 1024, used: 1024}
	require.False(t, l.refused(errors.New("the decode was aborted")))
	require.Equal(t, 1024, l.size)
	require.True(t, l.refused(refusal))
	require.Equal(t, listing{why: refusal.Error()}, l)
	require.False(t, l.refused(refusal), "the layers were refused")
}
