package search_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/skip"
)

func ExampleLog() {
	dir, err := os.MkdirTemp("", "log")
	if err != nil {
		stdlog.Fatal(err)
	}
	defer os.RemoveAll(dir)
	slow := func(ctx context.Context, mask skip.Mask, examples []int) ([]float64, error) {
		fmt.Println("the model computes", mask, examples)
		return toyLosses(ctx, mask, examples)
	}
	for range 2 { // as a program that is started twice
		l, err := search.OpenLog(filepath.Join(dir, "losses.log"), "model, data, settings")
		if err != nil {
			stdlog.Fatal(err)
		}
		fmt.Println(l.Wrap("chat", slow)(context.Background(), skip.Layers(4), []int{0, 2}))
		l.Close()
	}
	// Output:
	// the model computes 4 [0 2]
	// [4 4] <nil>
	// [4 4] <nil>
}

func openLog(t testing.TB, path, key string) *search.Log {
	t.Helper()
	l, err := search.OpenLog(path, key)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l
}

// recorder gives losses that tell mask and example, and notes what it is asked.
type recorder struct{ asked []string }

func (r *recorder) losses(_ context.Context, m skip.Mask, examples []int) ([]float64, error) {
	r.asked = append(r.asked, fmt.Sprint(m, examples))
	var out []float64
	for _, i := range examples {
		out = append(out, float64(m.Highest())+float64(i)/1000)
	}
	return out, nil
}

func TestLogAnswersParts(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "log")
	l := openLog(t, path, "key")
	var r recorder
	losses := l.Wrap("a", r.losses)
	ask := func(m skip.Mask, examples ...int) {
		t.Helper()
		got, err := losses(ctx, m, examples)
		require.NoError(t, err)
		want, err := new(recorder).losses(ctx, m, examples)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	ask(skip.Layers(2), 8, 9, 10)
	ask(skip.Layers(2), 24, 3)
	ask(skip.Layers(2), 9)
	ask(skip.Layers(2), 3, 4, 10, 40)
	ask(skip.Layers(2), 40, 24, 10, 9, 8, 4, 3)
	ask(skip.Layers(3), 0, 1)
	require.Equal(t, []string{"2 [8 9 10]", "2 [24 3]", "2 [4 40]", "3 [0 1]"}, r.asked)

	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
	_, err := losses(ctx, skip.Layers(2), []int{8})
	require.ErrorIs(t, err, search.ErrLog)

	l = openLog(t, path, "key")
	losses = l.Wrap("a", r.losses)
	r.asked = nil
	ask(skip.Layers(2), 3, 4, 8, 9, 10, 24, 40)
	ask(skip.Layers(3), 0, 1)
	require.Empty(t, r.asked)
	losses = l.Wrap("b", r.losses)
	ask(skip.Layers(2), 8)
	require.Equal(t, []string{"2 [8]"}, r.asked)
}

func TestLogIsExact(t *testing.T) {
	values := []float64{0, math.Copysign(0, -1), 1.0 / 3, math.Inf(1), math.Inf(-1), math.NaN(), math.MaxFloat64, math.SmallestNonzeroFloat64}
	path := filepath.Join(t.TempDir(), "log")
	l := openLog(t, path, "a key\nof \"two\" lines")
	_, err := l.Wrap("line\n\"task\"", func(context.Context, skip.Mask, []int) ([]float64, error) { return values, nil })(
		context.Background(), skip.Layers(500).With(3, skip.Attention), search.All(len(values)))
	require.NoError(t, err)
	require.NoError(t, l.Close())
	l = openLog(t, path, "a key\nof \"two\" lines")
	got, err := l.Wrap("line\n\"task\"", nil)(context.Background(), skip.Layers(500).With(3, skip.Attention), search.All(len(values)))
	require.NoError(t, err)
	for i := range values {
		require.Equal(t, math.Float64bits(values[i]), math.Float64bits(got[i]))
	}
}

func TestLogRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	require.NoError(t, openLog(t, path, "old").Close())
	_, err := search.OpenLog(path, "new")
	require.ErrorIs(t, err, search.ErrLogKey)
	require.ErrorContains(t, err, path)
	require.ErrorContains(t, err, `"old"`)
	l, err := search.CreateLog(path, "new")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	openLog(t, path, "new")
	l, err = search.CreateLog(filepath.Join(dir, "another"), "new")
	require.NoError(t, err)
	require.NoError(t, l.Close())

	for _, text := range []string{"Dear diary", "Dear diary,\n", "{}\n", "{\"gallop_search_log\":4,\"key\":\"k\"}\n", "\n"} {
		other := filepath.Join(dir, "other")
		require.NoError(t, os.WriteFile(other, []byte(text), 0o600))
		_, err = search.OpenLog(other, "k")
		require.ErrorIs(t, err, search.ErrLog, text)
		after, err := os.ReadFile(other)
		require.NoError(t, err)
		require.Equal(t, text, string(after))
	}
	_, err = search.OpenLog(filepath.Join(dir, "none", "log"), "k")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestLogKeepsNoFailures(t *testing.T) {
	l := openLog(t, filepath.Join(t.TempDir(), "log"), "key")
	fail := errors.New("no")
	_, err := l.Wrap("t", func(context.Context, skip.Mask, []int) ([]float64, error) { return nil, fail })(context.Background(), skip.Mask{}, search.All(3))
	require.ErrorIs(t, err, fail)
	_, err = l.Wrap("t", func(context.Context, skip.Mask, []int) ([]float64, error) { return make([]float64, 2), nil })(context.Background(), skip.Mask{}, search.All(3))
	require.ErrorIs(t, err, search.ErrLosses)
	var r recorder
	_, err = l.Wrap("t", r.losses)(context.Background(), skip.Mask{}, search.All(3))
	require.NoError(t, err)
	require.Len(t, r.asked, 1)
}

// TestLogTorn cuts a log at every byte, as a kill in mid-write does: what is whole
// is kept, and the log goes on behind it.
func TestLogTorn(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	l := openLog(t, path, "key")
	var r recorder
	for i := range 3 {
		_, err := l.Wrap("t", r.losses)(context.Background(), skip.Layers(1), []int{2 * i, 2*i + 1})
		require.NoError(t, err)
	}
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	asked := 4
	for n := range len(whole) + 1 {
		torn := filepath.Join(dir, "torn")
		require.NoError(t, os.WriteFile(torn, whole[:n], 0o600))
		for again := range 2 {
			l := openLog(t, torn, "key")
			var r recorder
			for i := range 3 {
				_, err := l.Wrap("t", r.losses)(context.Background(), skip.Layers(1), []int{2 * i, 2*i + 1})
				require.NoError(t, err)
			}
			require.NoError(t, l.Close())
			if again == 1 {
				require.Empty(t, r.asked)
				continue
			}
			require.LessOrEqual(t, len(r.asked), asked) // more bytes, no fewer answers
			asked = len(r.asked)
		}
		after, err := os.ReadFile(torn)
		require.NoError(t, err)
		require.Equal(t, string(whole), string(after))
	}
	require.Zero(t, asked)
}

// TestGreedyResumes kills a search at each of its evaluations, before and after,
// and starts it again.
func TestGreedyResumes(t *testing.T) {
	const examples = 24
	units := search.SublayerUnits(evenSizes(7))
	model := newFakeModel(units, examples, 1)
	o := &search.Options{Depth: 2, PerByte: true}
	want, err := search.Greedy(context.Background(), units, examples, model.losses, o)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "log")
	for kill := 1; ; kill++ {
		calls := 0
		find := func(stop int) ([]search.Step, error) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			l := openLog(t, path, "key")
			defer l.Close()
			calls = 0
			return search.Greedy(ctx, units, examples, l.Wrap("t", func(ctx context.Context, m skip.Mask, examples []int) ([]float64, error) {
				if calls++; calls == stop {
					cancel()
				}
				return model.losses(ctx, m, examples)
			}), o)
		}
		require.NoError(t, os.RemoveAll(path))
		part, err := find(kill)
		first := calls
		if err == nil { // it was over before
			require.Equal(t, want, part)
			require.Greater(t, kill, 20)
			return
		}
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, append([]search.Step{}, want[:len(part)]...), append([]search.Step{}, part...))
		got, err := find(0)
		require.NoError(t, err)
		require.Equal(t, want, got)
		again := calls
		_, err = find(0)
		require.NoError(t, err)
		require.Zero(t, calls)
		require.Positive(t, first+again)
	}
}

// TestLogJoin reads another process's log while it is written.
func TestLogJoin(t *testing.T) {
	dir := t.TempDir()
	theirs, ours := filepath.Join(dir, "theirs"), filepath.Join(dir, "ours")
	l := openLog(t, theirs, "key")
	var r recorder
	for i := range 2 {
		_, err := l.Wrap("t", r.losses)(t.Context(), skip.Layers(1), []int{2 * i, 2*i + 1})
		require.NoError(t, err)
	}
	require.NoError(t, l.Keep("name", skip.Mask{}, []float64{3, 4}))
	require.NoError(t, l.Close())
	whole, err := os.ReadFile(theirs)
	require.NoError(t, err)
	require.NoError(t, os.Remove(theirs))

	reader := openLog(t, ours, "key")
	var sum int64
	for n := range len(whole) + 1 {
		require.NoError(t, os.WriteFile(theirs, whole[:n], 0o600))
		news, err := reader.Join(theirs)
		require.NoError(t, err, n)
		sum += news
		require.Equal(t, n == len(whole), reader.Kept("name", skip.Mask{}) != nil)
	}
	require.Equal(t, len(whole)-len("{\"gallop_search_log\":3,\"key\":\"key\"}\n"), int(sum))
	require.Equal(t, []float64{3, 4}, reader.Kept("name", skip.Mask{}))
	require.True(t, reader.Known("t", skip.Layers(1), search.All(4)))
	require.False(t, reader.Known("t", skip.Layers(1), search.All(5)))
	mine, err := os.ReadFile(ours)
	require.NoError(t, err)
	require.Equal(t, 1, bytes.Count(mine, []byte("\n")), "what others keep is not kept again")

	for i := range whole { // any damage before the last line is told, and nothing is taken for true
		damaged := bytes.Clone(whole[:len(whole)-1])
		if i >= bytes.LastIndexByte(damaged, '\n') {
			break
		}
		damaged[i] ^= 4
		require.NoError(t, os.WriteFile(theirs, damaged, 0o600))
		reader := openLog(t, filepath.Join(dir, "another"), "key")
		_, err := reader.Join(theirs)
		require.True(t, errors.Is(err, search.ErrLog) || errors.Is(err, search.ErrLogKey), i)
		require.NoError(t, reader.Close())
	}
	_, err = reader.Join(filepath.Join(dir, "none"))
	require.NoError(t, err)

	openLog(t, theirs+"2", "key")
	_, err = search.OpenLog(theirs+"2", "key")
	require.ErrorIs(t, err, files.ErrLocked)
}

// FuzzOpenLog: any bytes are a log, refused, or cut to one.
func FuzzOpenLog(f *testing.F) {
	head := "{\"gallop_search_log\":3,\"key\":\"k\"}\n"
	seed := filepath.Join(f.TempDir(), "log")
	l, err := search.OpenLog(seed, "k")
	require.NoError(f, err)
	_, err = l.Wrap("t", new(recorder).losses)(f.Context(), skip.Layers(3).With(5, skip.Attention), []int{0, 1})
	require.NoError(f, err)
	require.NoError(f, l.Close())
	data, err := os.ReadFile(seed)
	require.NoError(f, err)
	line := string(data[len(head):])
	for _, seed := range []string{
		"", head, head[:9], head + line, head + line + line[:30], head + "rubbish\n" + line, "x",
		head + "{\"examples\":[9223372036854775807],\"losses\":\"3ff0000000000000\"}\n",
		head + "{\"examples\":[-1],\"losses\":\"3ff0000000000000\"}\n", head + "{\"examples\":[0],\"losses\":\"3f\"}\n", head + "null\n" + line,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "log")
		require.NoError(t, os.WriteFile(path, data, 0o600))
		l, err := search.OpenLog(path, "k")
		if err != nil {
			require.True(t, errors.Is(err, search.ErrLog) || errors.Is(err, search.ErrLogKey), err)
			return
		}
		ones := func(_ context.Context, _ skip.Mask, examples []int) ([]float64, error) {
			out := make([]float64, len(examples))
			for i := range out {
				out[i] = 1
			}
			return out, nil
		}
		first, err := l.Wrap("t", ones)(context.Background(), skip.Layers(3).With(5, skip.Attention), search.All(4))
		require.NoError(t, err)
		require.Len(t, first, 4)
		require.NoError(t, l.Close())
		l, err = search.OpenLog(path, "k")
		require.NoError(t, err)
		again, err := l.Wrap("t", nil)(context.Background(), skip.Layers(3).With(5, skip.Attention), search.All(4))
		require.NoError(t, err)
		for i := range first {
			require.Equal(t, math.Float64bits(first[i]), math.Float64bits(again[i]))
		}
		require.NoError(t, l.Close())
	})
}
