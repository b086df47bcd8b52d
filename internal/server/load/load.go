// Package load asks a server as its clients do, many of them at once, and notes what came when.
package load

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Answer is a streamed answer of OpenAI's completions or chat completions.
type Answer struct {
	Status int
	Asked  time.Time
	events []event
}

type event struct {
	at   time.Time
	data []byte
}

// Content is what an [Answer] says.
type Content struct {
	Text   string
	Tokens int         // as the usage says
	Prompt int         // tokens, as the usage says
	Cached int         // tokens of the prompt that were in the KV cache
	At     []time.Time // when pieces of the text came
}

// NewClient makes a client for so many requests at once. As Go's own default client does, it
// closes connections that were idle for 90 s: the server closes them after two minutes, and a
// request that is sent at that very moment would get no answer.
func NewClient(requests int) *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: requests, IdleConnTimeout: 90 * time.Second, DisableCompression: true}}
}

// Ask sends body, which asks for a stream with its usage. Events are only noted, so that clients
// which share a processor with the server take little of it; [Answer.Read] reads them. The error
// is for a server that is not there and for a stream that breaks off.
func Ask(ctx context.Context, c *http.Client, url, body string) (*Answer, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	a := &Answer{Asked: time.Now()}
	res, err := c.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if a.Status = res.StatusCode; a.Status != http.StatusOK {
		_, err = io.Copy(io.Discard, res.Body)
		return a, err
	}
	return a, a.follow(res.Body)
}

// follow notes the events of a stream.
func (a *Answer) follow(body io.Reader) error {
	lines := bufio.NewReader(body)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("the stream breaks off: %w", err)
		}
		data, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("data: "))
		switch {
		case !ok:
		case string(data) == "[DONE]":
			_, err = io.Copy(io.Discard, body) // so that the connection is used again
			return err
		default:
			a.events = append(a.events, event{time.Now(), data})
		}
	}
}

// Read reads the body of a streamed answer. Errors are those of [Ask] and [Answer.Read].
func Read(body io.Reader) (Content, error) {
	var a Answer
	if err := a.follow(body); err != nil {
		return Content{}, err
	}
	return a.Read()
}

// Read gives what the answer says. The error is what the server has told of in the stream.
func (a *Answer) Read() (c Content, err error) {
	var text strings.Builder
	for _, e := range a.events {
		var v struct {
			Choices []struct {
				Text  string
				Delta struct{ Content string }
			}
			Usage *struct {
				Completion int `json:"completion_tokens"`
				Prompt     int `json:"prompt_tokens"`
				Details    struct {
					Cached int `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			}
			Error *struct{ Message string }
		}
		if err := json.Unmarshal(e.data, &v); err != nil {
			return c, fmt.Errorf("read an event: %w", err)
		}
		if v.Error != nil {
			return c, fmt.Errorf("the server ends the stream: %s", v.Error.Message)
		}
		if v.Usage != nil {
			c.Tokens, c.Prompt, c.Cached = v.Usage.Completion, v.Usage.Prompt, v.Usage.Details.Cached
		}
		if len(v.Choices) > 0 {
			if piece := v.Choices[0].Text + v.Choices[0].Delta.Content; piece != "" {
				text.WriteString(piece)
				c.At = append(c.At, e.at)
			}
		}
	}
	c.Text = text.String()
	return c, nil
}
