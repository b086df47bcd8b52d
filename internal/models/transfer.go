package models

import (
	"context"
	"crypto/sha1" // git's, for files that are no LFS objects
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// unfinished ends the name of a blob that is not whole yet, as Hugging Face's own
// programs have it.
const unfinished = ".incomplete"

const (
	mostTries = 4               // of a request that brings nothing
	mostPause = 1 * time.Minute // that a hub may ask for
)

// errStalled ends a request that brings nothing more.
var errStalled = errors.New("no answer came")

// statusError is an answer other than the one that was hoped for.
type statusError struct {
	code  int
	after time.Duration // that the hub asks to wait; 0 = it does not say
}

func (e *statusError) Error() string {
	return fmt.Sprintf("HTTP status %d, %s", e.code, http.StatusText(e.code))
}

// temporary tells whether the same request may do better later.
func (e *statusError) temporary() bool {
	return e.code == http.StatusTooManyRequests || e.code == http.StatusRequestTimeout || e.code >= 500
}

// ownToken adds the token to requests to the hub itself. A redirect to another host,
// another port or away from TLS goes there without it.
type ownToken struct {
	hub    *url.URL
	header string
}

func (o *ownToken) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme == o.hub.Scheme && r.URL.Host == o.hub.Host {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", o.header)
	}
	return http.DefaultTransport.RoundTrip(r)
}

// host is what messages call the hub.
func (h *Hub) host() string {
	if u, err := url.Parse(h.Endpoint); err == nil {
		return u.Host
	}
	return h.Endpoint
}

// ask sends a request for what is at address from the byte on, and lets use read the
// answer. It fails when nothing comes for h.Stall.
func (h *Hub) ask(ctx context.Context, address string, from int64, use func(r *http.Response, body io.Reader) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return fmt.Errorf("%w: %s answers a bad address", ErrHub, h.host())
	}
	if from > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	client := http.Client{}
	if endpoint, err := url.Parse(h.Endpoint); err == nil && h.Token != "" {
		client.Transport = &ownToken{endpoint, "Bearer " + h.Token}
	}
	watch := time.AfterFunc(h.Stall, func() { cancel(errStalled) })
	defer watch.Stop()
	r, err := client.Do(request)
	if err == nil {
		defer r.Body.Close()
		if r.StatusCode >= 300 {
			return &statusError{r.StatusCode, retryAfter(r.Header.Get("Retry-After"))}
		}
		err = use(r, &watched{r.Body, func() { watch.Reset(h.Stall) }})
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	if failed := (*url.Error)(nil); errors.As(err, &failed) {
		return failed.Err // without the address, which may hold a signature
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

// retry calls try until it succeeds, fails for good or has failed mostTries times in a
// row without moving anything on.
func (h *Hub) retry(ctx context.Context, try func() (moved bool, err error)) error {
	pause := h.Pause
	for n := 1; ; n++ {
		moved, err := try()
		if moved {
			n, pause = 1, h.Pause
		}
		if err == nil || n >= mostTries || !mayPass(ctx, err) {
			return err
		}
		wait := pause
		if status := (*statusError)(nil); errors.As(err, &status) && status.after > 0 {
			if status.after > mostPause {
				return err
			}
			wait = status.after
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
	var status *statusError
	var local *os.PathError
	switch {
	case ctx.Err() != nil, errors.As(err, &local), errors.Is(err, ErrHub):
		return false
	case errors.As(err, &status):
		return status.temporary()
	}
	return true
}

// explain turns a request's fault into the sentence for the user.
func (h *Hub) explain(repo string, err error) error {
	var status *statusError
	var local *os.PathError
	switch {
	case err == nil, errors.Is(err, ErrHub), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &local):
		return fmt.Errorf("write what comes of %s: %w", repo, local.Err)
	case !errors.As(err, &status):
		return fmt.Errorf("%w: fetching %s from %s failed (%w); the same command goes on from where it was", ErrHub, repo, h.host(), err)
	}
	switch code := status.code; {
	case code == http.StatusUnauthorized && h.Token == "":
		return fmt.Errorf("%w: %s is private, or is not there; check the name, or set HF_TOKEN to a token that may read it", ErrAccess, repo)
	case code == http.StatusUnauthorized:
		return fmt.Errorf("%w: it does not take the token for %s; check the name, and HF_TOKEN", ErrAccess, repo)
	case code == http.StatusForbidden:
		return fmt.Errorf("%w: %s is for those only whom its owner lets in; ask for it at %s/%s, then set HF_TOKEN", ErrAccess, repo, h.Endpoint, repo)
	case code == http.StatusNotFound:
		return fmt.Errorf("%w: there is no %s at %s; check the name", ErrName, repo, h.host())
	case code == http.StatusTooManyRequests && status.after > 0:
		return fmt.Errorf("%w: %s has had too many requests; run the same command again in %s", ErrHub, h.host(), status.after)
	case code == http.StatusTooManyRequests:
		return fmt.Errorf("%w: %s has had too many requests; run the same command again later", ErrHub, h.host())
	case code >= 500:
		return fmt.Errorf("%w: %s has a fault of its own (%w); run the same command again later", ErrHub, h.host(), status)
	}
	return fmt.Errorf("%w: %s answers with %w for %s", ErrHub, h.host(), status, repo)
}

// transfer fetches one file.
type transfer struct {
	hub      *Hub
	repo     string
	file     remote
	address  string
	progress func(have int64)

	part *os.File  // what has come
	sum  hash.Hash // of it
	have int64     // bytes of it
}

// fetch leaves the file at blob, whole and right. What there is of it goes on from
// where it was. After an error there is nothing at blob, and what has come is kept
// beside it, unless it was wrong.
func (t *transfer) fetch(ctx context.Context, blob string) (err error) {
	if sizeOf(blob) == t.file.size() { // it was checked before it got the name
		return nil
	}
	path := blob + unfinished
	if t.part, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return fmt.Errorf("write what comes of %s: %w", t.repo, err)
	}
	defer t.part.Close()
	if err := unix.Flock(int(t.part.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%w: wait until it has ended, or end it (%s is locked)", ErrBusy, path)
	}
	if sizeOf(blob) == t.file.size() { // another process has just brought it
		_ = os.Remove(path)
		return nil
	}
	if err := t.takeUp(); err != nil {
		return t.hub.explain(t.repo, err)
	}
	err = t.hub.retry(ctx, func() (bool, error) {
		before := t.have
		if before == t.file.size() {
			return false, nil
		}
		err := t.hub.ask(ctx, t.address, t.have, t.receive)
		return t.have > before, err
	})
	if err != nil {
		return t.hub.explain(t.repo, err)
	}
	if got := hex.EncodeToString(t.sum.Sum(nil)); got != t.file.sum() {
		if err := os.Remove(path); err != nil {
			return err
		}
		return fmt.Errorf("%w: %s of %s has the checksum %s, not %s; it was deleted, run the same command again",
			ErrChecksum, t.file.Path, t.repo, got, t.file.sum())
	}
	if err := t.part.Sync(); err != nil {
		return t.hub.explain(t.repo, err)
	}
	return os.Rename(path, blob)
}

// takeUp reads what an earlier call has left.
func (t *transfer) takeUp() error {
	info, err := t.part.Stat()
	if err != nil {
		return err
	}
	if info.Size() > t.file.size() {
		return t.restart()
	}
	t.begin()
	t.have, err = io.Copy(t.sum, io.LimitReader(t.part, info.Size()))
	t.progress(t.have)
	return err
}

// begin makes the checksum of nothing.
func (t *transfer) begin() {
	if t.have = 0; t.file.LFS != nil {
		t.sum = sha256.New()
		return
	}
	t.sum = sha1.New()
	fmt.Fprintf(t.sum, "blob %d\x00", t.file.size())
}

// restart throws away what has come.
func (t *transfer) restart() error {
	t.begin()
	if err := t.part.Truncate(0); err != nil {
		return err
	}
	_, err := t.part.Seek(0, io.SeekStart)
	return err
}

// receive adds what comes. A hub that does not send from the middle sends all again.
func (t *transfer) receive(r *http.Response, body io.Reader) error {
	if r.StatusCode != http.StatusPartialContent && t.have > 0 {
		if err := t.restart(); err != nil {
			return err
		}
	}
	_, err := io.Copy(io.MultiWriter(t.part, t.sum, (*counter)(t)), io.LimitReader(body, t.file.size()-t.have))
	if err == nil && t.have < t.file.size() {
		return io.ErrUnexpectedEOF
	}
	return err
}

// counter counts what a transfer has written.
type counter transfer

func (c *counter) Write(p []byte) (int, error) {
	c.have += int64(len(p))
	c.progress(c.have)
	return len(p), nil
}
