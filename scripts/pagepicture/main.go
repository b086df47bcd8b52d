// Command pagepicture asks a running server's chat page some questions in a browser and
// takes the README's pictures of it: PREFIX-chat.png and PREFIX-compare.png.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

func main() {
	url := flag.String("url", "http://127.0.0.1:8080", "where the page is")
	prefix := flag.String("o", "docs/page", "prefix of the pictures")
	dark := flag.Bool("dark", false, "in the dark")
	phone := flag.Bool("phone", false, "as wide as a phone")
	flag.Parse()
	if err := run(*url, *prefix, *dark, *phone); err != nil {
		fmt.Fprintln(os.Stderr, "pagepicture:", err)
		os.Exit(1)
	}
}

func run(url, prefix string, dark, phone bool) error {
	path, err := exec.LookPath("chromium")
	if err != nil {
		return fmt.Errorf("there is no browser: apt install chromium: %w", err)
	}
	profile, err := os.MkdirTemp("", "pagepicture")
	if err != nil {
		return err
	}
	defer os.RemoveAll(profile)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	ctx, cancel = chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path),
		chromedp.UserDataDir(profile), chromedp.NoSandbox, chromedp.DisableGPU)...)
	defer cancel()
	ctx, cancel = chromedp.NewContext(ctx)
	defer cancel()

	colour := "light"
	if dark {
		colour = "dark"
	}
	size := chromedp.EmulateViewport(1360, 860)
	if phone {
		size = chromedp.EmulateViewport(390, 844, chromedp.EmulateMobile)
	}
	if err := chromedp.Do(ctx, size, chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: colour}},
		})
		return err
	}), chromedp.Navigate(url), chromedp.WaitReady("body[data-ready]")); err != nil {
		return fmt.Errorf("opening the page at %s: %w", url, err)
	}

	// The whole model first, as often as the picture wants to know its speed. Each story begins a
	// conversation: behind a longer one the small demo model is slower.
	for _, step := range []struct{ mode, question string }{
		{"whole", "Tell me a story about a cow."},
		{"whole", "Tell me a story about a duck."},
		{"whole", "Tell me a story about a hen."},
		{"routed", "Tell me a story about a fox."},
		{"routed", "What is the capital of France?"},
	} {
		do := fmt.Sprintf(`if (%q.includes("story")) document.querySelector("#new").click();
			document.querySelector("#mode [value=%s]").click();
			document.querySelector("#message").value = %q; document.querySelector("#composer").requestSubmit()`, step.question, step.mode, step.question)
		if err := ask(ctx, do, `document.querySelector(".answer:last-child:not(.running)") !== null`); err != nil {
			return err
		}
	}
	if err := ask(ctx, `document.querySelector(".answer .strip-button").click(); document.activeElement.blur()`, `true`); err != nil {
		return err
	}
	if err := picture(ctx, prefix+"-chat.png"); err != nil {
		return err
	}
	do := `location.hash = "#compare"; document.querySelector("#compare-message").value = "Tell me a story about a fox.";
		document.querySelector("#compare-form").requestSubmit()`
	done := `document.querySelector("#compare-result:not(.running) .verdict .big") !== null && document.querySelector(".replaying") === null`
	if err := ask(ctx, do, done); err != nil {
		return err
	}
	return picture(ctx, prefix+"-compare.png")
}

// ask runs a script and waits until an expression is true.
func ask(ctx context.Context, script, done string) error {
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[any]("(() => {"+script+"})()")); err != nil {
		return fmt.Errorf("asking: %w", err)
	}
	for {
		is, err := chromedp.Run(ctx, chromedp.Evaluate[bool](done))
		if err != nil {
			return fmt.Errorf("waiting for the answer: %w", err)
		}
		if is {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func picture(ctx context.Context, path string) error {
	time.Sleep(time.Second) // transitions
	data, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		return fmt.Errorf("taking the picture: %w", err)
	}
	return os.WriteFile(path, data, 0o644)
}
