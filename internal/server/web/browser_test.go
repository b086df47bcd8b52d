package web

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/skip"
)

// reader is somebody who uses the page in a browser, with the keyboard alone.
type reader struct {
	ctx    context.Context
	server *fake
	url    string

	mu         sync.Mutex
	complaints []string // of the browser: exceptions, violations of the policy, failed requests
	requests   []string // URLs
}

// open starts a browser beside a fake server, or skips the test.
func open(t *testing.T) *reader {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skip("there is no chromium or google-chrome to open the page in: apt install chromium")
	}
	r := &reader{server: &fake{pace: 3 * time.Millisecond}}
	server := httptest.NewServer(r.server)
	t.Cleanup(server.Close)
	r.url = server.URL

	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()),
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	r.ctx, cancel = chromedp.NewContext(ctx, chromedp.WithListener(func(event any) {
		r.mu.Lock()
		defer r.mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			text := e.ExceptionDetails.Text
			if e.ExceptionDetails.Exception != nil {
				text += " " + e.ExceptionDetails.Exception.Description
			}
			r.complaints = append(r.complaints, text)
		case *runtime.EventConsoleAPICalled:
			r.complaints = append(r.complaints, "console."+string(e.Type))
		case *log.EventEntryAdded:
			r.complaints = append(r.complaints, e.Entry.Text)
		case *network.EventRequestWillBeSent:
			r.requests = append(r.requests, e.Request.URL)
		}
	}))
	t.Cleanup(cancel)
	r.do(t, chromedp.EmulateViewport(1360, 880), chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
		return err
	}))
	r.visit(t, "/")
	return r
}

func (r *reader) do(t *testing.T, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	require.NoError(t, chromedp.Do(r.ctx, actions...))
}

func (r *reader) visit(t *testing.T, path string) {
	t.Helper()
	r.do(t, chromedp.Navigate(r.url+path))
	r.until(t, `document.body.dataset.ready === ""`)
}

// eval gives what a JavaScript expression is worth in the page.
func eval[T any](t *testing.T, r *reader, expression string) T {
	t.Helper()
	value, err := chromedp.Run(r.ctx, chromedp.Evaluate[T](expression))
	require.NoError(t, err, expression)
	return value
}

// until waits for an expression to be true.
func (r *reader) until(t *testing.T, expression string) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for !eval[bool](t, r, expression) {
		require.False(t, time.Now().After(end), "never true: %s", expression)
		time.Sleep(10 * time.Millisecond)
	}
}

// press presses a key and lets it go. Its text belongs to the press, as with a real keyboard:
// where the page takes the key for itself, nothing is typed. chromedp's KeyEvent types anyway.
func (r *reader) press(t *testing.T, key string, modifiers ...kb.Modifier) {
	t.Helper()
	var held kb.Modifier
	for _, m := range modifiers {
		held |= m
	}
	r.do(t, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		events := kb.Encode([]rune(key)[0])
		down, up := events[0], events[len(events)-1]
		if len(events) == 3 && held&^kb.ModifierShift == 0 {
			down.Text = events[1].Text
		}
		for _, event := range []*input.DispatchKeyEventParams{down, up} {
			event.Modifiers |= int64(held)
			if _, err := cdp.Call(ctx, target, input.DispatchKeyEvent, *event); err != nil {
				return err
			}
		}
		return nil
	}))
}

// tab presses Tab until what has the focus has this name, as a screen reader would say it.
func (r *reader) tab(t *testing.T, name string, modifiers ...kb.Modifier) {
	t.Helper()
	const focused = `(() => {
		const e = document.activeElement
		return (e.getAttribute("aria-label") ?? (e.labels?.length ? e.labels[0].textContent : e.textContent)).trim().slice(0, 40)
	})()`
	var seen []string
	for range 150 {
		r.press(t, kb.Tab, modifiers...)
		is := eval[string](t, r, focused)
		if is == name {
			return
		}
		seen = append(seen, is)
	}
	require.Failf(t, "the Tab key never gets there", "to %q, but to %q", name, seen)
}

// back is tab in the other direction.
func (r *reader) back(t *testing.T, name string) {
	t.Helper()
	r.tab(t, name, kb.ModifierShift)
}

func (r *reader) write(t *testing.T, text string) {
	t.Helper()
	r.do(t, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, input.InsertText, input.InsertTextParams{Text: text})
		return err
	}))
}

// ask sends a question from the field, which has the focus, and waits for the answer's end.
func (r *reader) ask(t *testing.T, question string) {
	t.Helper()
	r.write(t, question)
	r.press(t, kb.Enter)
	r.answered(t)
}

func (r *reader) answered(t *testing.T) {
	t.Helper()
	r.until(t, `document.querySelector(".answer:last-child:not(.running)") !== null`)
}

// texts are those of all elements that a selector finds.
func (r *reader) texts(t *testing.T, selector string) []string {
	t.Helper()
	quoted, err := json.Marshal(selector)
	require.NoError(t, err)
	return eval[[]string](t, r, `[...document.querySelectorAll(`+string(quoted)+`)].map(e => e.textContent.trim())`)
}

func (r *reader) last(t *testing.T, selector string) string {
	t.Helper()
	all := r.texts(t, selector)
	require.NotEmpty(t, all, selector)
	return all[len(all)-1]
}

// requestsSince are the requests that the server got after the first n.
func (r *reader) requestsSince(n int) []request {
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	return slices.Clone(r.server.asked[n:])
}

// asked is the last request that the server got.
func (r *reader) asked(t *testing.T) request {
	t.Helper()
	all := r.requestsSince(0)
	require.NotEmpty(t, all)
	return all[len(all)-1]
}

// mask is what the picture of the model shows as skipped.
func (r *reader) mask(t *testing.T) skip.Mask {
	t.Helper()
	type half struct{ Layer, Half int }
	var m skip.Mask
	for _, h := range eval[[]half](t, r, `[...document.querySelectorAll(".tower .half.skipped title")].map(e => ({
		Layer: Number(e.textContent.match(/\d+/)[0]), Half: e.textContent.includes("attention") ? 1 : 2}))`) {
		m = m.With(h.Layer, skip.Half(h.Half))
	}
	return m
}

func parsed(t *testing.T, text string) skip.Mask {
	t.Helper()
	m, err := skip.Parse(text)
	require.NoError(t, err)
	return m
}

// TestPage uses the page as people do, with the keyboard alone.
func TestPage(t *testing.T) {
	r := open(t)
	axe := axeSource(t)

	t.Run("the picture shows the layers of an answer", func(t *testing.T) {
		r.ask(t, "Tell me a story about a fox.")
		require.Equal(t, "Once upon a time, there was a fox. The fox wanted to see the sea. It walked for three days, saw the blue water and came home happy.",
			r.last(t, ".answer .markdown"))
		require.Equal(t, parsed(t, "f2,f4-6,9"), r.mask(t))
		require.Contains(t, r.last(t, ".panel .lead"), "13 of 16 layers")
		require.Contains(t, r.last(t, ".panel .reason"), "stories")
		require.Contains(t, r.last(t, ".turn-facts"), "2 escalated")
		require.Equal(t, 2, eval[int](t, r, `CSS.highlights.get("escalated").size`), "they are marked in the text")

		r.ask(t, "What is the capital of France?")
		require.Equal(t, parsed(t, "3,a5,f7,f11-13"), r.mask(t), "another prompt, other layers")
		require.Equal(t, "Paris", r.last(t, ".answer strong"))
		require.Len(t, r.asked(t).Messages, 3)
		require.Equal(t, "31 of 4096 tokens", eval[string](t, r, `document.querySelector("#gauge").getAttribute("aria-valuetext")`))
		require.Equal(t, "The capital of France is **Paris**.", r.last(t, "#announcer"), "a screen reader hears the answer")
	})

	t.Run("what the model writes never becomes HTML", func(t *testing.T) {
		r.ask(t, "Something dangerous")
		require.Equal(t, []string{}, r.texts(t, ".markdown :is(img, script, b, style)"))
		require.Contains(t, r.last(t, ".answer .markdown"), `<img src=x onerror=alert(1)>`)
		require.Equal(t, []string{"https://elsewhere.example/picture.png"},
			eval[[]string](t, r, `[...document.querySelector(".answer:last-child").querySelectorAll("a[href]")].map(a => a.href)`), "an image is a link, and only to where a link may lead")
	})

	t.Run("code is coloured", func(t *testing.T) {
		r.ask(t, "Write a function")
		require.Equal(t, "func", r.texts(t, ".hljs-keyword")[0])
		require.Equal(t, "2", r.texts(t, ".answer:last-child table tbody tr")[0][3:4])
	})

	t.Run("an answer streams until it is stopped", func(t *testing.T) {
		r.write(t, "A long answer")
		r.press(t, kb.Enter)
		r.until(t, `(document.querySelector(".answer.running .markdown")?.textContent ?? "").includes("so on")`)
		some := len(r.last(t, ".answer .markdown"))
		r.until(t, fmt.Sprintf(`document.querySelector(".answer.running .markdown").textContent.trim().length > %d`, some))
		r.press(t, kb.Escape)
		r.answered(t)
		require.Equal(t, "Stopped.", r.last(t, ".answer .problem"))
		require.Contains(t, r.last(t, ".answer .markdown"), "and so on", "what has come stays")
		require.Eventually(t, func() bool {
			r.server.mu.Lock()
			defer r.server.mu.Unlock()
			return r.server.stopped == 1
		}, 10*time.Second, 10*time.Millisecond, "the server is told")
	})

	t.Run("edit makes a branch", func(t *testing.T) {
		r.until(t, `document.activeElement.id === "message"`)
		r.press(t, kb.ArrowUp)
		r.press(t, "a", kb.ModifierCtrl)
		r.write(t, "What is the capital of Spain?")
		r.press(t, kb.Enter)
		r.answered(t)
		require.Equal(t, "2 / 2", r.last(t, ".question .place"))
		messages := r.asked(t).Messages
		require.Equal(t, "What is the capital of Spain?", messages[len(messages)-1].Content)
		for _, m := range messages {
			require.NotContains(t, m.Content, "long answer")
		}
		r.back(t, "Earlier version")
		r.press(t, kb.Enter)
		require.Equal(t, "A long answer", r.last(t, ".question .bubble"))
		require.Equal(t, "Stopped.", r.last(t, ".answer .problem"))
		r.until(t, `document.activeElement.getAttribute("aria-label") === "Later version"`)
		r.press(t, kb.Enter)
		require.Equal(t, "What is the capital of Spain?", r.last(t, ".question .bubble"))
	})

	t.Run("answer again", func(t *testing.T) {
		r.tab(t, "Answer again")
		r.press(t, kb.Enter)
		r.answered(t)
		require.Equal(t, "2 / 2", r.last(t, ".answer .place"))
	})

	t.Run("the switch", func(t *testing.T) {
		r.press(t, "/")
		r.tab(t, "Routed")
		for _, step := range []struct {
			key, skip string
			lossless  bool
		}{
			{kb.ArrowRight, "depth=2", false}, {kb.ArrowRight, "quality=0.95", false}, {kb.ArrowRight, "routed", true}, {kb.ArrowRight, "off", false},
		} {
			r.press(t, step.key)
			r.back(t, "Message")
			r.ask(t, "Tell me a story about a fox.")
			asked := r.asked(t)
			require.Equal(t, step.skip, asked.Gallop.Skip)
			require.Equal(t, step.lossless, asked.Gallop.Lossless)
			if step.lossless {
				require.Positive(t, eval[int](t, r, `CSS.highlights.get("draft").size`))
				require.Contains(t, r.last(t, ".facts"), "Drafts accepted")
			}
			r.press(t, kb.Tab)
		}
		require.Equal(t, skip.Mask{}, r.mask(t), "the whole model skips nothing")
		r.press(t, kb.ArrowRight)
		r.press(t, kb.ArrowRight)
		r.press(t, kb.Tab) // to the slider
		r.press(t, kb.ArrowRight)
		r.back(t, "Message")
		r.ask(t, "Tell me a story about a fox.")
		require.Equal(t, "depth=2.5", r.asked(t).Gallop.Skip)
		require.Contains(t, r.last(t, ".facts"), "Whole model, 1 answer")
		require.Contains(t, r.last(t, ".facts"), "too seldom")
		r.tab(t, "Depth")
		r.press(t, kb.ArrowLeft)
	})

	t.Run("tokens", func(t *testing.T) {
		r.press(t, kb.Tab)
		r.back(t, "Message")
		r.ask(t, "Tell me a story about a fox.")
		r.back(t, "Tokens")
		r.press(t, kb.Enter)
		require.Contains(t, r.last(t, "#tip"), "98.0 %")
		require.Contains(t, r.last(t, "#tip"), "prompt’s own pass")
		r.press(t, kb.ArrowRight)
		require.Contains(t, r.last(t, "#tip"), "computed without f2,f4-6,9")
		require.Equal(t, parsed(t, "f2,f4-6,9"), r.mask(t))
		for range 100 {
			if strings.Contains(r.last(t, "#tip"), "escalated") {
				break
			}
			r.press(t, kb.ArrowRight)
		}
		require.Contains(t, r.last(t, "#tip"), "sea")
		require.Equal(t, skip.Mask{}, r.mask(t), "the whole model computed this token")
		require.Contains(t, eval[string](t, r, `document.activeElement.getAttribute("aria-label")`), "sea, 30.1 %, escalated")

		// In the text itself, with a mouse.
		r.tab(t, "Tokens")
		r.press(t, kb.Enter)
		place := eval[struct{ X, Y float64 }](t, r, `(() => {
			const range = [...CSS.highlights.get("escalated")].filter(range => String(range) === "happy").at(-1)
			range.startContainer.parentElement.scrollIntoView({block: "center"})
			const box = range.getBoundingClientRect()
			return {X: box.left + box.width / 2, Y: box.top + box.height / 2}
		})()`)
		r.do(t, chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, place.X, place.Y))
		require.Regexp(t, "^·happy30.1 %escalated", r.last(t, "#tip"))
		r.do(t, chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, 1, 1))
		require.True(t, eval[bool](t, r, `document.querySelector("#tip").hidden`))
		r.press(t, kb.Enter)
		r.accessible(t, axe)
	})

	t.Run("a full server", func(t *testing.T) {
		r.tab(t, "Message")
		r.ask(t, "Are you busy?")
		require.Equal(t, "64 requests wait already. Try again in 3 s.", r.last(t, ".answer .problem"))
		r.forgive(t, "429")
		r.ask(t, "One two")
		for _, m := range r.asked(t).Messages {
			require.NotContains(t, m.Content, "busy", "it was not answered")
			require.NotEmpty(t, m.Content)
		}
	})

	t.Run("side by side", func(t *testing.T) {
		before := len(r.requestsSince(0))
		r.back(t, "Side by side")
		r.press(t, kb.Enter)
		r.until(t, `document.activeElement.id === "compare-message"`)
		r.ask2(t, "Tell me a story about a fox.")
		require.Regexp(t, `^[\d.]+ × (as fast|the speed)$`, r.last(t, ".verdict strong"))
		require.Equal(t, "93 % of the words are the same", r.last(t, ".verdict .big span"))
		r.until(t, `CSS.highlights.get("differs").size === 2 && document.querySelector(".replaying") === null`)
		require.Equal(t, []string{"four", "three"}, eval[[]string](t, r, `[...CSS.highlights.get("differs")].map(String)`))
		require.Equal(t, []string{"Whole model", "Routed"}, r.texts(t, ".way h2"))
		require.Contains(t, r.texts(t, ".figures tr"), "Layers run16 of 1613 of 16")
		require.Regexp(t, "(one answer|answers) each", r.last(t, ".verdict"))

		r.press(t, "a", kb.ModifierCtrl)
		r.ask2(t, "What is the capital of France?")
		require.Equal(t, "Word for word the same answer", r.last(t, ".verdict .big span"))
		var order []string
		for _, asked := range r.requestsSince(before) {
			require.Equal(t, "0", asked.Temperature.String(), "what differs comes from the layers")
			order = append(order, asked.Gallop.Skip)
		}
		require.Equal(t, []string{"off", "routed", "routed", "off"}, order[:4], "they take turns to be first")
		r.accessible(t, axe)

		r.press(t, "a", kb.ModifierCtrl)
		r.ask2(t, "Something strange")
		require.Equal(t, "Nothing was skipped", r.last(t, ".verdict strong"), "chance is no speed-up")
		require.Contains(t, r.last(t, ".verdict"), "differ by chance")

		r.press(t, "a", kb.ModifierCtrl)
		r.write(t, "A long answer")
		r.press(t, kb.Enter)
		r.until(t, `document.querySelector(".ways").textContent.includes("so on")`)
		r.press(t, kb.Escape)
		r.until(t, `document.querySelector(".verdict").textContent.includes("nothing to compare")`)
	})

	t.Run("conversations", func(t *testing.T) {
		r.back(t, "Chat")
		r.press(t, kb.Enter)
		r.until(t, `document.activeElement.id === "message"`)
		before := r.texts(t, "#turns .bubble")
		require.Greater(t, len(before), 5)
		r.press(t, "O", kb.ModifierCtrl, kb.ModifierShift)
		r.ask(t, "One two three")
		require.Len(t, r.texts(t, ".entry"), 2)

		r.untilKept(t, "You said 3 words.")
		r.do(t, chromedp.Reload())
		r.until(t, `document.body.dataset.ready === ""`)
		require.Equal(t, []string{"One two three"}, r.texts(t, "#turns .bubble"), "the latest one is shown")
		r.press(t, "k", kb.ModifierCtrl)
		r.write(t, "blue water")
		require.Len(t, r.texts(t, ".entry"), 1)
		r.press(t, kb.ArrowDown)
		r.press(t, kb.Enter)
		require.Equal(t, before, r.texts(t, "#turns .bubble"))
		require.Contains(t, r.texts(t, ".question .place"), "2 / 2", "branches are kept")
		require.Positive(t, eval[int](t, r, `document.querySelectorAll(".turn .strip .skipped").length`), "and which layers ran")

		r.press(t, "k", kb.ModifierCtrl)
		r.press(t, kb.ArrowDown)
		r.press(t, kb.F2)
		r.press(t, "a", kb.ModifierCtrl)
		r.write(t, "Foxes")
		r.press(t, kb.Enter)
		require.Equal(t, []string{"Foxes"}, r.texts(t, ".entry"))

		folder := t.TempDir()
		r.do(t, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := cdp.Call(ctx, target, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{
				Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: folder,
			})
			return err
		}))
		r.tab(t, "Export all")
		r.press(t, kb.Enter)
		file := filepath.Join(folder, "gallop-conversations.json")
		require.Eventually(t, func() bool {
			data, err := os.ReadFile(file)
			return err == nil && json.Valid(data)
		}, 10*time.Second, 20*time.Millisecond)

		r.press(t, "k", kb.ModifierCtrl)
		r.press(t, kb.ArrowDown)
		r.press(t, kb.Delete)
		require.Empty(t, r.texts(t, ".entry"))
		r.tab(t, "Undo")
		r.press(t, kb.Enter)
		require.Equal(t, []string{"Foxes"}, r.texts(t, ".entry"))
		r.press(t, "k", kb.ModifierCtrl)
		r.press(t, kb.ArrowDown)
		r.press(t, kb.Delete)
		r.do(t, chromedp.SetUploadFiles("#import-file", []string{file}))
		r.until(t, `document.querySelector(".entry") !== null`)
		require.Contains(t, r.last(t, "#toast"), "Imported 1 of 2")
		for _, damaged := range []struct{ turns, complaint string }{
			{`{"a": {"id": "a", "text": "x", "role": "user", "created": 1, "parent": "a"}}`, "in a circle"},
			{`{"a": {"id": "a", "text": "x", "role": "user", "created": 1, "parent": "constructor"}}`, "one that is missing"},
			{`{"a": {"id": "a", "text": 7, "role": "user", "created": 1, "parent": null}}`, "lacks its text"},
			{`[`, "not JSON"},
		} {
			require.NoError(t, os.WriteFile(file, []byte(`{"format": "gallop-conversations", "version": 1, "conversations": [{"id": "x", "title": "x", "turns": `+damaged.turns+`, "leaf": "a"}]}`), 0o644))
			r.do(t, chromedp.SetUploadFiles("#import-file", []string{file}))
			r.until(t, `document.querySelector("#toast").textContent.includes("`+damaged.complaint+`")`)
		}
		r.press(t, kb.ArrowDown)
		r.press(t, kb.Enter)
		require.Equal(t, before, r.texts(t, "#turns .bubble"))
	})

	t.Run("a link prefills and never sends", func(t *testing.T) {
		before := len(r.requestsSince(0))
		r.visit(t, "/?q="+url.QueryEscape("Tell me <b>all</b>"))
		require.Equal(t, "Tell me <b>all</b>", eval[string](t, r, `document.querySelector("#message").value`))
		require.Empty(t, r.texts(t, ".turn"))
		require.Empty(t, r.requestsSince(before))
	})

	t.Run("a key", func(t *testing.T) {
		r.server.mu.Lock()
		r.server.key = "secret"
		r.server.mu.Unlock()
		r.visit(t, "/")
		r.until(t, `document.activeElement.id === "key"`)
		r.write(t, "secret")
		r.press(t, kb.Enter)
		r.until(t, `document.querySelector("#model").textContent === "fake-1b"`)
		r.until(t, `document.activeElement.id === "message"`)
		r.ask(t, "Tell me a story about a fox.")
		require.Contains(t, r.last(t, ".answer .markdown"), "Once upon a time")
		require.Contains(t, r.last(t, ".ratio"), "the whole model’s speed", "the comparisons have timed it")
		r.tab(t, "Compare side by side")
		r.press(t, kb.Enter)
		r.until(t, `document.activeElement.id === "compare-message"`)
		require.Equal(t, "Tell me a story about a fox.", eval[string](t, r, `document.activeElement.value`))
		r.back(t, "Chat")
		r.press(t, kb.Enter)
		r.until(t, `document.activeElement.id === "message"`)
		r.forgive(t, "401")
	})

	t.Run("every width and colour", func(t *testing.T) {
		r.press(t, "a", kb.ModifierCtrl)
		r.ask(t, "Write a function")
		for _, colour := range []string{"light", "dark"} {
			r.do(t, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
				_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
					Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: colour}, {Name: "prefers-reduced-motion", Value: "reduce"}},
				})
				return err
			}))
			for _, size := range [][2]int64{{1360, 880}, {900, 700}, {360, 740}} {
				r.do(t, chromedp.EmulateViewport(size[0], size[1]))
				require.LessOrEqual(t, eval[int](t, r, `document.documentElement.scrollWidth`), int(size[0]), "nothing is cut off at the side")
				require.LessOrEqual(t, eval[int](t, r, `Math.max(...[...document.querySelectorAll("#main button, #main a, #main input")].filter(e => e.checkVisibility() && !e.closest(".scroll")).map(e => Math.ceil(e.getBoundingClientRect().right)))`), int(size[0]))
				if size[0] != 900 { // which has nothing of its own
					r.accessible(t, axe)
				}
			}
		}
		r.tab(t, "Conversations")
		r.press(t, kb.Enter)
		require.True(t, eval[bool](t, r, `document.querySelector("#side").checkVisibility() && document.querySelector("#main").inert`))
		r.accessible(t, axe)
		r.press(t, kb.Escape)
		require.False(t, eval[bool](t, r, `document.querySelector("#side").checkVisibility()`))
	})

	r.mu.Lock()
	defer r.mu.Unlock()
	require.Empty(t, r.complaints, "exceptions, or violations of the content security policy")
	for _, at := range r.requests {
		require.True(t, strings.HasPrefix(at, r.url+"/") || strings.HasPrefix(at, "blob:"+r.url+"/"), "a request to %s", at)
	}
}

// untilKept waits until the browser's database has a turn with this text.
func (r *reader) untilKept(t *testing.T, text string) {
	t.Helper()
	look := fmt.Sprintf(`new Promise(resolve => {
		const opened = indexedDB.open("gallop")
		opened.onsuccess = () => {
			const all = opened.result.transaction("conversations").objectStore("conversations").getAll()
			all.onsuccess = () => {
				opened.result.close()
				resolve(all.result.some(c => Object.values(c.turns).some(turn => turn.text === %q)))
			}
		}
	})`, text)
	require.Eventually(t, func() bool {
		kept, err := chromedp.Run(r.ctx, chromedp.Evaluate[bool](look, await))
		return err == nil && kept
	}, 20*time.Second, 20*time.Millisecond)
}

// await is for expressions that are promises.
func await(p *runtime.EvaluateParams) {
	yes := true
	p.AwaitPromise = &yes
}

// forgive forgets what the browser itself says of an answer's status.
func (r *reader) forgive(t *testing.T, status string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	require.NotEmpty(t, r.complaints)
	for _, text := range r.complaints {
		require.Contains(t, text, status)
	}
	r.complaints = nil
}

// ask2 sends a question to both ways and waits for the verdict.
func (r *reader) ask2(t *testing.T, question string) {
	t.Helper()
	r.write(t, question)
	r.press(t, kb.Enter)
	r.until(t, `document.querySelector("#compare-result:not(.running) .verdict .big") !== null`)
}

// axeSource is the accessibility checker, "" where npm could not fetch it.
func axeSource(t *testing.T) string {
	t.Helper()
	source, err := os.ReadFile("../../../build/web/node_modules/axe-core/axe.min.js")
	if err != nil {
		t.Log("there is no axe-core, so accessibility is not checked; scripts/page.sh packages fetches it:", err)
	}
	return string(source)
}

// accessible has axe find nothing serious in what the page shows now.
func (r *reader) accessible(t *testing.T, axe string) {
	t.Helper()
	if axe == "" {
		return
	}
	if !eval[bool](t, r, `"axe" in window`) {
		r.do(t, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := chromedp.Evaluate[any](axe+"; null")(ctx, target)
			return err
		}))
	}
	result, err := chromedp.Run(r.ctx, chromedp.Evaluate[[]string](`axe.run(document, {resultTypes: ["violations"]}).then(found => found.violations
		.filter(v => ["serious", "critical"].includes(v.impact)).flatMap(v => v.nodes.map(n => v.id + ": " + n.html.slice(0, 160) + " " + (n.any[0]?.message ?? ""))))`, await))
	require.NoError(t, err)
	require.Empty(t, result)
}
