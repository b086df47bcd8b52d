package draft

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/lab/report"
)

// TestCostPicture draws docs/lossless.png: what the cost model expects on two
// cores at each chance of acceptance, for masks that make a drafted token cost
// these shares of a whole one. GALLOP_PICTURE names another file.
func TestCostPicture(t *testing.T) {
	path := os.Getenv("GALLOP_PICTURE")
	if path == "" {
		path = t.TempDir() + "/lossless.png"
	}
	p := laptop()
	var series []report.Series
	for _, share := range []float64{0, 0.2, 0.35, 0.5, 0.65} {
		s := report.Series{Name: fmt.Sprintf("drafted at %g %% of the cost", 100*share)}
		cost := &draftCost{once: 0.03, each: share} // and half a millisecond for a graph
		if share == 0 {
			s.Name, cost = "looked up", &draftCost{}
		}
		for percent := 0.0; percent <= 99; percent += 3 {
			_, rate := p.best(cost, fill(make([]float64, MaxDraft), percent/100))
			s.X, s.Y = append(s.X, percent), append(s.Y, max(rate, 1))
		}
		series = append(series, s)
	}
	require.NoError(t, report.CurvePNG(path, "Lossless drafts on two cores, 1B shape in Q4_0", "chance that a drafted token is accepted, %", "decode, × one token at a time", series))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Positive(t, info.Size())
}
