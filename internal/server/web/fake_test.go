package web

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// fake is a server without a model: it speaks the API that the page uses, with written
// answers. The last question chooses among them.
type fake struct {
	pace time.Duration // between tokens of the whole model; shortened ones take two thirds

	mu      sync.Mutex
	key     string    // "" = none is needed
	asked   []request // in order
	stopped int       // streams that their clients left
}

type request struct {
	Model    string    `json:"model"`
	Messages []message `json:"messages"`
	Stream   bool      `json:"stream"`

	Temperature json.Number `json:"temperature"`
	Gallop      struct {
		Skip     string `json:"skip"`
		Lossless bool   `json:"lossless"`
		Detail   bool   `json:"detail"`
	} `json:"gallop"`
}

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

const (
	fakeLayers  = 16
	fakeContext = 4096
)

// script is a written answer.
type script struct {
	word   string // in the question
	skip   string // what the router leaves out for it
	ran    float64
	reason string
	routed string // the answer under the mask; "^" is in front of a token that is escalated
	whole  string // the whole model's, "" = the same one
	pace   int    // times slower
}

var scripts = []script{
	{
		word: "fox", skip: "f2,f4-6,9", ran: 13, reason: "The prompt is like the calibration's stories: at this depth 0.98 of the whole model's probability per token is kept.",
		routed: "Once upon a time, there was a fox. The fox wanted to see the ^sea. It walked for three days, saw the blue water and came home ^happy.",
		whole:  "Once upon a time, there was a fox. The fox wanted to see the sea. It walked for four days, saw the blue water and came home happy.",
	},
	{
		word: "capital", skip: "3,a5,f7,f11-13", ran: 12.5, reason: "The prompt is like the calibration's facts.",
		routed: "The capital of France is ^**Paris**.",
	},
	{
		word: "function", skip: "f10-13", ran: 14, reason: "The prompt is like the calibration's programs.",
		routed: "## Reversing a list\n\nThe function goes from **both ends** to the middle and swaps what it meets:\n\n" +
			"```go\n// Reverse turns a slice around in place.\nfunc Reverse[T any](list []T) {\n\tfor i, j := 0, len(list)-1; i < j; i, j = i+1, j-1 {\n\t\tlist[i], list[j] = list[j], list[i]\n\t}\n}\n```\n\n" +
			"It takes `n/2` ^swaps and no memory. The standard library has [slices.Reverse](https://pkg.go.dev/slices#Reverse), which does the same.\n\n" +
			"| list | result |\n|---|---|\n| `[1 2 3]` | `[3 2 1]` |\n| `[]` | `[]` |\n\n1. An empty list stays ^empty.\n2. A list of one stays as it is.\n",
	},
	{
		word: "dangerous", skip: "f1", ran: 15.5, reason: "A test.",
		routed: "Before <img src=x onerror=alert(1)> <script>alert(2)</script> <b style='color:red'>bold</b> after.\n\n" +
			"![a picture](https://elsewhere.example/picture.png) [bad](javascript:alert(3)) [own](/metrics)\n",
	},
	{word: "strange", skip: "", ran: fakeLayers, reason: "The prompt is unlike the calibration's.", routed: "I do not know."},
	{word: "long", skip: "f2", ran: 15.5, reason: "A test.", routed: strings.Repeat("and so on ", 400), pace: 10},
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	refused := f.key != "" && r.Header.Get("Authorization") != "Bearer "+f.key
	f.mu.Unlock()
	if _, page := served[r.URL.Path]; refused && !page {
		reply(w, http.StatusUnauthorized, map[string]any{"error": map[string]any{"message": "the API key is missing or wrong"}})
		return
	}
	switch r.URL.Path {
	case "/v1/models":
		reply(w, http.StatusOK, map[string]any{"data": []any{map[string]any{"id": "fake-1b"}}})
	case "/props":
		reply(w, http.StatusOK, map[string]any{"model": "fake-1b", "n_ctx": fakeContext, "layers": fakeLayers, "profile": true})
	case "/v1/chat/completions":
		f.complete(w, r)
	default:
		Handler().ServeHTTP(w, r)
	}
}

func reply(w http.ResponseWriter, status int, what any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(what)
}

func (f *fake) complete(w http.ResponseWriter, r *http.Request) {
	var asked request
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || !asked.Stream || !asked.Gallop.Detail || r.Header.Get("Content-Type") != "application/json" {
		reply(w, http.StatusBadRequest, map[string]any{"error": map[string]any{"message": "the page asks for streams with detail"}})
		return
	}
	f.mu.Lock()
	f.asked = append(f.asked, asked)
	f.mu.Unlock()

	question := asked.Messages[len(asked.Messages)-1].Content
	if strings.Contains(question, "busy") {
		w.Header().Set("Retry-After", "3")
		reply(w, http.StatusTooManyRequests, map[string]any{"error": map[string]any{"message": "64 requests wait already."}})
		return
	}
	s := script{skip: "f3", ran: 15.5, reason: "The prompt is unlike the calibration's.", routed: fmt.Sprintf("You said %d words.", len(strings.Fields(question)))}
	for _, one := range scripts {
		if strings.Contains(question, one.word) {
			s = one
		}
	}
	text, skip, ran, pace, source := s.routed, s.skip, s.ran, f.pace*2/3, "mask"
	switch {
	case asked.Gallop.Lossless:
		text, pace, source = first(s.whole, s.routed), f.pace*3/4, "draft"
	case asked.Gallop.Skip == "off":
		text, skip, ran, pace, source = first(s.whole, s.routed), "", fakeLayers, f.pace, "whole"
	case strings.HasPrefix(asked.Gallop.Skip, "depth="):
		skip, ran = "5,7", 14
	}
	pace *= time.Duration(max(s.pace, 1))
	f.stream(w, r, s, text, skip, ran, pace, source)
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return strings.ReplaceAll(b, "^", "")
}

func (f *fake) stream(w http.ResponseWriter, r *http.Request, s script, text, skip string, ran float64, pace time.Duration, source string) {
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(chunk map[string]any) {
		data, _ := json.Marshal(chunk)
		fmt.Fprintf(w, "data: %s\n\n", data)
		w.(http.Flusher).Flush()
	}
	tokens := tokensOf(text)
	escalated, drafted := 0, 0
	began := time.Now()
	for i, token := range tokens {
		select {
		case <-r.Context().Done():
			f.mu.Lock()
			f.stopped++
			f.mu.Unlock()
			return
		case <-time.After(pace):
		}
		by, logprob := source, -0.02-0.9*float64((i*7919)%13)/13
		switch {
		case i == 0:
			by = "prompt"
		case strings.HasPrefix(token, "^") && source == "mask":
			by, logprob = "escalated", -1.2
			escalated++
		case source == "draft" && i%4 == 0:
			by = "whole"
		case source == "draft":
			drafted++
		}
		token = strings.TrimPrefix(token, "^")
		send(map[string]any{
			"choices": []any{map[string]any{"delta": map[string]any{"content": token}}},
			"gallop":  map[string]any{"tokens": []any{map[string]any{"text": token, "source": by, "logprob": logprob}}, "skip": skip},
		})
	}
	send(map[string]any{"choices": []any{map[string]any{"delta": map[string]any{}, "finish_reason": "stop"}}})
	reason := s.reason
	if source == "whole" {
		reason = "The whole model was asked for."
	}
	send(map[string]any{
		"choices": []any{},
		"usage": map[string]any{
			"prompt_tokens": 24, "completion_tokens": len(tokens), "prompt_tokens_details": map[string]any{"cached_tokens": 6},
		},
		"gallop": map[string]any{
			"skip": skip, "reason": reason, "layers_run": ran, "layers": fakeLayers, "escalated": escalated,
			"drafted": drafted + drafted/3, "accepted": drafted, "tps": float64(len(tokens)) / time.Since(began).Seconds(),
			"prompt_tps": 410.5, "first_token_ms": float64(pace.Microseconds()) / 1000 * 9, "weights_share": ran / fakeLayers,
		},
	})
	fmt.Fprint(w, "data: [DONE]\n\n")
}

// tokensOf cuts a text into pieces as a tokenizer might: words with the space in front.
func tokensOf(text string) []string {
	var tokens []string
	start := 0
	for i := range text {
		if i > start && (text[i] == ' ' || text[i] == '\n' || text[i] == '^' || strings.ContainsRune(".,|`(", rune(text[i]))) {
			if tail := text[start:i]; tail != " " || text[i] != '^' {
				tokens = append(tokens, tail)
				start = i
			}
		}
	}
	for i, token := range tokens {
		// The mark stands in front of the space too.
		if strings.HasPrefix(token, " ^") {
			tokens[i] = "^ " + token[2:]
		}
	}
	return append(tokens, text[start:])
}
