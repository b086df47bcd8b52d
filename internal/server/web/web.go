// Package web is the chat page that a server shows at "/".
//
// # Basics
//
// [Handler] serves the page. Its sources are page.html, icon.svg and, in TypeScript, src;
// dist is what `make page` bundles from src, and what a server sends. The page speaks to the
// API that is beside it: v1/chat/completions, v1/models and props.
//
// # Caveats
//
// The page loads nothing from elsewhere, and its content security policy keeps it so: no
// script or style within the HTML, no HTML of the model's, no image but its own.
package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"fmt"
	"net/http"
	"path"
	"time"
)

//go:embed page.html icon.svg dist
var files embed.FS

// served says which file lies at which path.
var served = map[string]string{
	"/":            "page.html",
	"/icon.svg":    "icon.svg",
	"/page.js":     "dist/page.js",
	"/page.css":    "dist/page.css",
	"/notices.txt": "dist/notices.txt",
}

var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".svg":  "image/svg+xml",
	".js":   "text/javascript; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".txt":  "text/plain; charset=utf-8",
}

// policy lets the page use its own files and the API beside it. Trusted Types leave the
// sanitizer as the only way from text to HTML.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
	"require-trusted-types-for 'script'; trusted-types dompurify"

// Handler serves the page at "/" and its files beside it; every other path is not found.
func Handler() http.Handler {
	mux := http.NewServeMux()
	for at, name := range served {
		content, err := files.ReadFile(name)
		if err != nil {
			panic(err) // embedded above
		}
		tag := fmt.Sprintf(`"%x"`, sha256.Sum256(content))
		pattern := at
		if at == "/" {
			pattern = "/{$}"
		}
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, r *http.Request) {
			header := w.Header()
			header.Set("Content-Type", contentTypes[path.Ext(name)])
			header.Set("Content-Security-Policy", policy)
			header.Set("X-Content-Type-Options", "nosniff")
			header.Set("Referrer-Policy", "no-referrer")
			header.Set("Cross-Origin-Opener-Policy", "same-origin")
			header.Set("Cross-Origin-Resource-Policy", "same-origin")
			header.Set("Cache-Control", "no-cache") // asked again each time, answered by the tag
			header.Set("ETag", tag)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
		})
	}
	return mux
}
