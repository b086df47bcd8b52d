package server

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gallop-llm/gallop/internal/server/wire"
)

// The rules that keep web pages of others away from a server on their visitor's machine:
//
//   - Host must be an address, localhost, or a name that the server was told to serve. A page
//     whose name was made to point at this machine (DNS rebinding) has its own name there.
//   - Origin, where there is one, must be the server itself or an allowed one.
//   - What is posted must be JSON by its Content-Type. A form cannot send that, and scripts of
//     other origins must ask first, which is answered for allowed ones alone.
//   - Where there are keys, each request needs one, but for /health, /ready and the page's own files.

// checkHost refuses names that the server does not serve.
func (s *Server) checkHost(host string) *wire.Error {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	if name == "localhost" || strings.HasSuffix(name, ".localhost") || net.ParseIP(name) != nil || slices.Contains(s.hosts, name) {
		return nil
	}
	return &wire.Error{Status: http.StatusForbidden, Code: "host_not_allowed",
		Message: fmt.Sprintf("this server does not serve the host %q; allow it with --allow-host", name)}
}

// checkOrigin refuses requests of web pages that are neither the server's own nor allowed.
// allowed tells that the origin is another one, which may read the answer.
func (s *Server) checkOrigin(r *http.Request) (allowed bool, refused *wire.Error) {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false, nil
	}
	if slices.Contains(s.opts.Origins, origin) {
		return true, nil
	}
	if u, err := url.Parse(origin); err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host) {
		return false, nil
	}
	return false, &wire.Error{Status: http.StatusForbidden, Code: "origin_not_allowed",
		Message: fmt.Sprintf("this server does not answer pages of %s; allow them with --allow-origin", origin)}
}

// checkKey refuses requests without one of the server's keys. How long that takes says
// nothing about a key.
func (s *Server) checkKey(h http.Header) *wire.Error {
	if len(s.keys) == 0 {
		return nil
	}
	key := h.Get("X-Api-Key")
	if scheme, token, ok := strings.Cut(h.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		key = strings.TrimSpace(token)
	}
	sum := sha256.Sum256([]byte(key))
	right := 0
	for _, k := range s.keys {
		right |= subtle.ConstantTimeCompare(sum[:], k[:])
	}
	if right == 1 {
		return nil
	}
	return &wire.Error{Status: http.StatusUnauthorized, Code: "invalid_api_key",
		Message: "the API key is missing or wrong; send one as \"Authorization: Bearer KEY\" or in x-api-key"}
}

// readBody reads a JSON body.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if charset := params["charset"]; err != nil || kind != "application/json" || charset != "" && !strings.EqualFold(charset, "utf-8") {
		return nil, &wire.Error{Status: http.StatusUnsupportedMediaType, Code: "unsupported_media_type",
			Message: "the Content-Type must be application/json"}
	}
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return nil, &wire.Error{Status: http.StatusUnsupportedMediaType, Code: "unsupported_media_type",
			Message: fmt.Sprintf("a body with Content-Encoding %s is not read; send it as it is", e)}
	}
	// The deadline ends with the body: it would end the answer too.
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(s.opts.BodyTimeout)) // not every writer can
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.opts.MaxBody))
	if err == nil {
		_ = rc.SetReadDeadline(time.Time{})
	} else {
		w.Header().Set("Connection", "close") // what is left of the body is not waited for
	}
	var large *http.MaxBytesError
	var network net.Error
	switch {
	case errors.As(err, &large):
		return nil, &wire.Error{Status: http.StatusRequestEntityTooLarge, Code: "request_too_large",
			Message: fmt.Sprintf("the body is larger than %d bytes", large.Limit)}
	case errors.As(err, &network) && network.Timeout():
		return nil, &wire.Error{Status: http.StatusRequestTimeout, Code: "timeout",
			Message: fmt.Sprintf("the body did not come within %v", s.opts.BodyTimeout)}
	case err != nil:
		return nil, wire.BadRequest("", "the body could not be read")
	}
	return body, wire.Check(body)
}

// CheckAddress refuses to serve other machines without a key. host is an address or a name to listen on.
func CheckAddress(host string, keys []string) error {
	if slices.Contains(keys, "") {
		return errors.New("an API key is empty")
	}
	if len(keys) > 0 || host == "localhost" {
		return nil
	}
	if ip := net.ParseIP(strings.Trim(host, "[]")); ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("%s can be reached from other machines: set a key with --api-key, or listen on 127.0.0.1", host)
}
