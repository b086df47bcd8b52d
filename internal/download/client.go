package download

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// MostTries is how often a request that brings nothing is sent.
	MostTries = 4

	mostPause = 1 * time.Minute // that a server may ask for
)

// errStalled ends a request that brings nothing more.
var errStalled = errors.New("no answer came")

// StatusError is an answer other than the one that was hoped for.
type StatusError struct {
	Code  int
	After time.Duration // that the server asks to wait; 0 = it does not say
}

// Error names the status by number and word.
func (e *StatusError) Error() string {
	return strings.TrimSuffix(fmt.Sprintf("HTTP status %d, %s", e.Code, http.StatusText(e.Code)), ", ")
}

// temporary tells whether the same request may do better later.
func (e *StatusError) temporary() bool {
	return e.Code == http.StatusTooManyRequests || e.Code == http.StatusRequestTimeout || e.Code >= 500
}

// Permanent is a fault that another try would meet again.
type Permanent struct{ Err error }

func (p Permanent) Error() string { return p.Err.Error() }

// Unwrap gives the fault.
func (p Permanent) Unwrap() error { return p.Err }

// Token adds a header Authorization to requests below an address, which ends in a slash,
// and to no others. A redirect to another host, another port or away from TLS goes there without it.
type Token struct {
	At        *url.URL
	Header    string            // "" = none
	Transport http.RoundTripper // nil = [http.DefaultTransport]
}

// RoundTrip is [http.RoundTripper]'s.
func (t *Token) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.Header != "" && r.URL.Scheme == t.At.Scheme && r.URL.Host == t.At.Host && strings.HasPrefix(r.URL.Path, t.At.Path) {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", t.Header)
	}
	if t.Transport == nil {
		return http.DefaultTransport.RoundTrip(r)
	}
	return t.Transport.RoundTrip(r)
}

// Client sends requests.
type Client struct {
	Transport http.RoundTripper // nil = [http.DefaultTransport]
	Pause     time.Duration     // before the first further try; doubled for each
	Stall     time.Duration     // without any byte, after which a request has failed
}

// Get sends one request for what is at address from the byte on, and lets use read the
// answer. Its error does not name the address, which may hold a secret.
func (c *Client) Get(ctx context.Context, address string, from int64, use func(r *http.Response, body io.Reader) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return Permanent{errors.New("the address cannot be read")}
	}
	request.Header.Set("Accept-Encoding", "identity") // a range is one of the file's own bytes
	if from > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	watch := time.AfterFunc(c.Stall, func() { cancel(errStalled) })
	defer watch.Stop()
	r, err := (&http.Client{Transport: c.Transport}).Do(request)
	if err == nil {
		defer r.Body.Close()
		if r.StatusCode >= 300 {
			return &StatusError{r.StatusCode, retryAfter(r.Header.Get("Retry-After"))}
		}
		err = use(r, &watched{r.Body, func() { watch.Reset(c.Stall) }})
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	if failed := (*url.Error)(nil); errors.As(err, &failed) {
		return failed.Err
	}
	return err
}

// watched tells of every piece that is read.
type watched struct {
	io.Reader
	came func()
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if n > 0 {
		w.came()
	}
	return n, err
}

func retryAfter(text string) time.Duration {
	if seconds, err := strconv.Atoi(text); err == nil && seconds > 0 {
		return min(time.Duration(seconds), 24*60*60) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(time.Until(at), 0).Round(time.Second)
	}
	return 0
}

// Retry calls try until it succeeds, fails for good or has failed [MostTries] times in a
// row without moving anything on.
func (c *Client) Retry(ctx context.Context, try func() (moved bool, err error)) error {
	pause := c.Pause
	for n := 1; ; n++ {
		moved, err := try()
		if moved {
			n, pause = 1, c.Pause
		}
		if err == nil || n >= MostTries || !mayPass(ctx, err) {
			return err
		}
		wait := pause
		if status := (*StatusError)(nil); errors.As(err, &status) && status.After > 0 {
			if status.After > mostPause {
				return err
			}
			wait = status.After
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
		pause *= 2
	}
}

// mayPass tells whether a fault may be gone at the next try: those of the network are.
func mayPass(ctx context.Context, err error) bool {
	var status *StatusError
	var local *os.PathError
	var permanent Permanent
	switch {
	case ctx.Err() != nil, errors.As(err, &local), errors.As(err, &permanent):
		return false
	case errors.As(err, &status):
		return status.temporary()
	}
	return true
}
