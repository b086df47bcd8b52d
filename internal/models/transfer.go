package models

import (
	"context"
	"crypto/sha1" // git's, for files that are no LFS objects
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"net/http"
	"net/url"
	"os"

	"github.com/gallop-llm/gallop/internal/download"
)

// client asks the hub, with the token for it.
func (h *Hub) client() *download.Client {
	client := &download.Client{Pause: h.Pause, Stall: h.Stall}
	if endpoint, err := url.Parse(h.Endpoint + "/"); err == nil && h.Token != "" {
		client.Transport = &download.Token{At: endpoint, Header: "Bearer " + h.Token}
	}
	return client
}

// host is what messages call the hub.
func (h *Hub) host() string {
	if u, err := url.Parse(h.Endpoint); err == nil {
		return u.Host
	}
	return h.Endpoint
}

// explain turns a request's fault into the sentence for the user.
func (h *Hub) explain(repo string, err error) error {
	var status *download.StatusError
	var local *os.PathError
	switch {
	case err == nil, errors.Is(err, ErrHub), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, download.ErrBusy):
		return fmt.Errorf("%w: wait until it has ended, or end it (%w)", ErrBusy, err)
	case errors.Is(err, download.ErrChecksum):
		return fmt.Errorf("%w: %w; it was deleted, run the same command again", ErrChecksum, err)
	case errors.As(err, &local):
		return fmt.Errorf("write what comes of %s: %w", repo, local.Err)
	case !errors.As(err, &status):
		return fmt.Errorf("%w: fetching %s from %s failed (%w); the same command goes on from where it was", ErrHub, repo, h.host(), err)
	}
	switch code := status.Code; {
	case code == http.StatusUnauthorized && h.Token == "":
		return fmt.Errorf("%w: %s is private, or is not there; check the name, or set HF_TOKEN to a token that may read it", ErrAccess, repo)
	case code == http.StatusUnauthorized:
		return fmt.Errorf("%w: it does not take the token for %s; check the name, and HF_TOKEN", ErrAccess, repo)
	case code == http.StatusForbidden:
		return fmt.Errorf("%w: %s is for those only whom its owner lets in; ask for it at %s/%s, then set HF_TOKEN", ErrAccess, repo, h.Endpoint, repo)
	case code == http.StatusNotFound:
		return fmt.Errorf("%w: there is no %s at %s; check the name", ErrName, repo, h.host())
	case code == http.StatusTooManyRequests && status.After > 0:
		return fmt.Errorf("%w: %s has had too many requests; run the same command again in %s", ErrHub, h.host(), status.After)
	case code == http.StatusTooManyRequests:
		return fmt.Errorf("%w: %s has had too many requests; run the same command again later", ErrHub, h.host())
	case code >= 500:
		return fmt.Errorf("%w: %s has a fault of its own (%w); run the same command again later", ErrHub, h.host(), status)
	}
	return fmt.Errorf("%w: %s answers with %w for %s", ErrHub, h.host(), status, repo)
}

// file is a file of a repository as it is fetched.
func (h *Hub) file(repo, revision string, f remote, progress func(have int64)) download.File {
	want, _ := hex.DecodeString(f.sum()) // [checksum] has seen it
	return download.File{
		Address:  h.Endpoint + "/" + repo + "/resolve/" + revision + "/" + escape(f.Path),
		Size:     f.size(),
		NewSum:   func() hash.Hash { return newSum(f) },
		Want:     want,
		Progress: func(have, _ int64) { progress(have) },
	}
}

func newSum(f remote) hash.Hash {
	if f.LFS != nil {
		return sha256.New()
	}
	sum := sha1.New()
	fmt.Fprintf(sum, "blob %d\x00", f.size())
	return sum
}
