package router

import (
	"bufio"
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
)

// skillPrompts reads the demo model's prompts with the number of each one's skill.
func skillPrompts(t testing.TB, m *llama.Model, path string, skills *[]string) (prompts []Prompt, skill []int) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var line struct{ Prompt, Task string }
		require.NoError(t, json.Unmarshal(lines.Bytes(), &line))
		tokens, err := m.Vocab.Tokenize(line.Prompt, false)
		require.NoError(t, err)
		if !slices.Contains(*skills, line.Task) {
			*skills = append(*skills, line.Task)
		}
		prompts = append(prompts, Prompt{line.Prompt, tokens})
		skill = append(skill, slices.Index(*skills, line.Task))
	}
	return prompts, skill
}

// TestUnknownSkillsAreFlagged leaves skills out of the calibration data, and
// counts how many of their test prompts, whose wordings and instances are unseen
// too, are found unlike, and how many of the known skills'.
// GALLOP_LONG=1 does so for all twelve.
func TestUnknownSkillsAreFlagged(t *testing.T) {
	path, err := demo.Path()
	require.NoError(t, err)
	m := llamatest.Open(t, path)
	var skills []string
	prompts, skill := skillPrompts(t, m, "../demo/calibration.jsonl", &skills)
	tests, testSkill := skillPrompts(t, m, "../demo/test.jsonl", &skills)
	require.Len(t, skills, 12)

	left := []int{slices.Index(skills, "arithmetic"), slices.Index(skills, "story")}
	if os.Getenv("GALLOP_LONG") != "" {
		left = left[:0]
		for s := range skills {
			left = append(left, s)
		}
	}
	var flagged, alarms, unknown, known float64
	for _, out := range left {
		f, err := NewFeatures(FeatureSpec{}, &Sources{Model: path})
		require.NoError(t, err)
		defer f.Close()
		var in []Prompt
		var task []int
		for i, s := range skill {
			if s != out {
				in, task = append(in, prompts[i]), append(task, s)
			}
		}
		require.NoError(t, f.Fit(in))
		x, err := f.Vectors(in)
		require.NoError(t, err)
		d, err := NewNovelty(x, task)
		require.NoError(t, err)
		v := make([]float32, f.Dim())
		var hits, wrong, nOut, nIn float64
		for i, p := range tests {
			require.NoError(t, f.Vector(v, p))
			unlike := d.Distance(v) > 1
			switch {
			case testSkill[i] == out:
				nOut++
				if unlike {
					hits++
				}
			default:
				nIn++
				if unlike {
					wrong++
				}
			}
		}
		t.Logf("%-10s flagged %5.1f %%, false alarms %4.1f %%", skills[out], 100*hits/nOut, 100*wrong/nIn)
		flagged, alarms, unknown, known = flagged+hits, alarms+wrong, unknown+nOut, known+nIn
	}
	t.Logf("all        flagged %5.1f %%, false alarms %4.1f %%", 100*flagged/unknown, 100*alarms/known)
	require.Greater(t, flagged/unknown, 0.9)
	require.Less(t, alarms/known, 0.055)
}

func TestNoveltyOfWhatIsKnown(t *testing.T) {
	x, _, task := synthetic(200, 4, 900, 3)
	d, err := NewNovelty(x, task)
	require.NoError(t, err)
	require.Equal(t, noveltyDim, d.Dim)
	const rounding = 0.01 // vectors are kept in 8 bits
	require.InDelta(t, 0, d.Distance(x[0]), rounding)
	above := 0
	y, _, _ := synthetic(200, 4, 900, 77) // other tasks altogether
	for _, v := range y {
		if d.Distance(v) > 1 {
			above++
		}
	}
	require.Greater(t, above, 150)
}

func TestNoveltyWithoutVariation(t *testing.T) {
	d, err := NewNovelty([][]float32{{1, 0}, {1, 0}, {0, 1}}, []int{0, 0, 3})
	require.NoError(t, err)
	require.InDelta(t, 0, d.Distance([]float32{1, 0}), 1e-6)
	require.Greater(t, d.Distance([]float32{-1, -1}), 0.0)
	require.Greater(t, d.Distance([]float32{0, 0}), 0.0)
}
