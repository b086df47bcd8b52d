package web

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHandler(t *testing.T) {
	get := func(path, tag string) *http.Response {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("If-None-Match", tag)
		w := httptest.NewRecorder()
		Handler().ServeHTTP(w, r)
		return w.Result()
	}
	for at := range served {
		first := get(at, "")
		require.Equal(t, http.StatusOK, first.StatusCode, at)
		policy := first.Header.Get("Content-Security-Policy")
		require.Contains(t, policy, "default-src 'none'", at)
		require.NotContains(t, policy, "unsafe", at)
		require.Equal(t, "nosniff", first.Header.Get("X-Content-Type-Options"), at)
		require.Equal(t, http.StatusNotModified, get(at, first.Header.Get("ETag")).StatusCode, at)
	}
	require.Equal(t, http.StatusOK, get("/?q=hello", "").StatusCode)
	for _, at := range []string{"/dist/page.js", "/page.html", "/src/main.ts", "/v1/models"} {
		require.Equal(t, http.StatusNotFound, get(at, "").StatusCode, at)
	}
}
