package compare

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/skip"
)

// browser finds a browser or skips the test.
func browser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("there is no chromium or google-chrome to open the report in: apt install chromium")
	return ""
}

// TestReportInABrowser opens a report as people do, on a desktop and on a phone.
func TestReportInABrowser(t *testing.T) {
	path := browser(t)
	m := small(t)
	data := examples()
	data[0].Prompt = "a_word_that_is_far_too_long_for_any_line_of_a_phone_and_has_no_place_to_break_it"
	ways := []Way{way(t, m, "a profile of some length", "1,3", skip.MaskedPrefill, 0), way(t, m, "other", "f2", skip.FullPrefill, 0)}
	r, err := Run(t.Context(), m, ways, data, nil)
	require.NoError(t, err)
	page, err := r.HTML()
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "report.html")
	require.NoError(t, os.WriteFile(file, page, 0o644))

	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	defer cancel()
	var mu sync.Mutex
	var complaints, requests []string
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithListener(func(event any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			complaints = append(complaints, "exception: "+e.ExceptionDetails.Text)
		case *runtime.EventConsoleAPICalled:
			complaints = append(complaints, fmt.Sprintf("console.%s", e.Type))
		case *log.EventEntryAdded:
			complaints = append(complaints, e.Entry.Text)
		case *network.EventRequestWillBeSent:
			requests = append(requests, e.Request.URL)
		}
	}))
	defer cancel()

	// What the page has: widths of everything that is to be seen, and what each table says.
	type look struct {
		Tables   []int     // rows
		Heads    int       // header cells without a scope
		Pictures []float64 // areas in pixels of what is drawn in each
		Nameless int       // pictures without a name for who cannot see them
		Images   []int     // natural widths
		Articles int
		Marks    int
		Scripts  int
	}
	const script = `(() => ({
		Tables: [...document.querySelectorAll("table")].map(t => t.querySelectorAll("tbody tr").length),
		Heads: document.querySelectorAll("th:not([scope])").length,
		Pictures: [...document.querySelectorAll("svg")].map(s => [...s.querySelectorAll("path, circle, rect, line")]
			.map(e => e.getBoundingClientRect()).reduce((sum, b) => sum + b.width * b.height, 0)),
		Nameless: document.querySelectorAll("svg:not([aria-label]), img:not([alt])").length,
		Images: [...document.images].map(i => i.naturalWidth),
		Articles: document.querySelectorAll("article").length,
		Marks: document.querySelectorAll("mark").length,
		Scripts: document.scripts.length,
	}))()`
	type widths struct{ Scroll, Client int }
	const width = `(() => ({Scroll: document.documentElement.scrollWidth, Client: document.documentElement.clientWidth}))()`
	const hide = `(() => {
		document.querySelector("#only").click();
		return [...document.querySelectorAll("article")].filter(a => a.offsetHeight == 0).length;
	})()`
	require.NoError(t, chromedp.Do(ctx, chromedp.EmulateViewport(1200, 900), chromedp.Navigate("file://"+file)))
	seen, err := chromedp.Run(ctx, chromedp.Evaluate[look](script))
	require.NoError(t, err)
	wide, err := chromedp.Run(ctx, chromedp.Evaluate[widths](width))
	require.NoError(t, err)
	require.NoError(t, chromedp.Do(ctx, chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile)))
	narrow, err := chromedp.Run(ctx, chromedp.Evaluate[widths](width))
	require.NoError(t, err)
	hidden, err := chromedp.Run(ctx, chromedp.Evaluate[int](hide))
	require.NoError(t, err)

	_, rows := r.Table()
	require.Equal(t, []int{len(rows), len(data)}, seen.Tables)
	require.Zero(t, seen.Heads)
	require.Len(t, seen.Pictures, 4+3*len(data), "two plots, a map for each way, a strip for each answer")
	for i, area := range seen.Pictures {
		require.Positive(t, area, "picture %d is empty", i)
	}
	require.Zero(t, seen.Nameless)
	for _, width := range seen.Images {
		require.Positive(t, width)
	}
	require.Equal(t, len(data), seen.Articles)
	require.Positive(t, seen.Marks)
	require.Zero(t, seen.Scripts, "what is asked and answered stays text")
	require.LessOrEqual(t, wide.Scroll, wide.Client, "the page scrolls sideways on a desktop")
	require.Equal(t, 360, narrow.Client)
	require.LessOrEqual(t, narrow.Scroll, narrow.Client, "the page scrolls sideways on a phone")
	same := 0
	for _, p := range r.Prompts {
		if p.Answers[1].Same && p.Answers[2].Same {
			same++
		}
	}
	require.Equal(t, same, hidden, "the box leaves the prompts whose answers differ")

	mu.Lock()
	defer mu.Unlock()
	require.Empty(t, complaints)
	require.Equal(t, []string{"file://" + file}, requests, "nothing else is fetched")
}
