package npm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/gallop-llm/gallop/internal/download"
)

// ErrRegistry is returned when no registry is known, or its address is none.
var ErrRegistry = errors.New("no npm registry")

// Registry is where the packages of a scope are, and how to ask there.
type Registry struct {
	Address   *url.URL // its path ends in a slash
	Transport http.RoundTripper
}

// Archive is the address of a package's archive.
func (r *Registry) Archive(name, version string) string {
	base := name[strings.LastIndex(name, "/")+1:]
	return r.Address.JoinPath(name, "-", base+"-"+version+".tgz").String()
}

// settings are npm's, those that go before others first.
type settings []map[string]string

func (s settings) get(keys ...string) string {
	for _, layer := range s {
		for _, key := range keys {
			if value, ok := layer[key]; ok && value != "null" {
				return value
			}
		}
	}
	return ""
}

// Configure finds the registry of a scope such as "@node-llama-cpp": as npm's configuration
// says, else standard, else as an npm that is installed says. Errors: [ErrRegistry], or what
// is wrong with the configuration.
func Configure(ctx context.Context, scope, standard string) (*Registry, error) {
	s, err := read()
	if err != nil {
		return nil, err
	}
	address := s.get(scope + ":registry")
	if address == "" {
		address = s.get("registry")
	}
	if address == "" {
		address = standard
	}
	if address == "" {
		out, err := exec.CommandContext(ctx, "npm", "config", "get", "registry").Output()
		if address = strings.TrimSpace(string(out)); err != nil || address == "" {
			return nil, fmt.Errorf("%w is known: set npm_config_registry to the address of one", ErrRegistry)
		}
	}
	at, err := url.Parse(address)
	if err != nil || at.Hostname() == "" || at.Scheme != "https" && at.Scheme != "http" {
		return nil, fmt.Errorf("%w has the address that npm's configuration names as registry: want one as https://host/", ErrRegistry)
	}
	at = at.JoinPath("/")
	plain, err := s.transport()
	if err != nil {
		return nil, err
	}
	below, header := s.authorization(at)
	return &Registry{at, &download.Token{At: below, Header: header, Transport: plain}}, nil
}

// read reads npm's configuration.
func read() (settings, error) {
	env := environment()
	home, _ := os.UserHomeDir()
	user := env["userconfig"]
	if user == "" {
		user = filepath.Join(home, ".npmrc")
	}
	global := env["globalconfig"]
	if global == "" {
		global = filepath.Join(prefix(env), "etc", "npmrc")
	}
	layers := settings{env}
	for _, file := range []struct {
		path string
		mine bool // and no foreign folder's
	}{{".npmrc", false}, {user, true}, {global, true}} {
		text, err := os.ReadFile(file.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, fmt.Errorf("read npm's configuration: %w", err)
		}
		layer := parse(text)
		for key, value := range layer {
			if file.mine {
				layer[key] = expand(value)
			} else if key != "registry" && !strings.HasSuffix(key, ":registry") {
				delete(layer, key)
			}
		}
		layers = append(layers, layer)
	}
	return layers, nil
}

// environment gives the settings that the environment has, as npm_config_strict_ssl=false.
func environment() map[string]string {
	layer := map[string]string{}
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		const mark = "npm_config_"
		if len(name) <= len(mark) || !strings.EqualFold(name[:len(mark)], mark) || value == "" {
			continue
		}
		key := name[len(mark):]
		if !strings.HasPrefix(key, "//") {
			key = strings.ToLower(key[:1] + strings.ReplaceAll(key[1:], "_", "-"))
		}
		layer[key] = value
	}
	return layer
}

// prefix is the folder below which npm is installed.
func prefix(env map[string]string) string {
	if env["prefix"] != "" {
		return env["prefix"]
	}
	if runtime.GOOS == "windows" {
		return filepath.Join(os.Getenv("APPDATA"), "npm")
	}
	if npm, err := exec.LookPath("npm"); err == nil {
		return filepath.Dir(filepath.Dir(npm))
	}
	return "/usr/local"
}

// parse reads the lines of an .npmrc: key = value, and key[] = value, whose values are
// joined by line breaks.
func parse(text []byte) map[string]string {
	layer := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, len(text)+1)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.ContainsRune(";#[", rune(line[0])) {
			continue
		}
		key, value, found := strings.Cut(line, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !found {
			value = "true"
		}
		if strings.HasPrefix(value, `"`) {
			_ = json.Unmarshal([]byte(value), &value) // what is no string stays
		}
		value = strings.Trim(value, "'")
		if name, list := strings.CutSuffix(key, "[]"); list {
			layer[name] += value + "\n"
			continue
		}
		layer[key] = value
	}
	return layer
}

var variable = regexp.MustCompile(`\$\{([^}]+)\}`)

// expand puts in the values of ${NAME}; one that the environment lacks stays.
func expand(value string) string {
	return variable.ReplaceAllStringFunc(value, func(text string) string {
		if is, ok := os.LookupEnv(text[2 : len(text)-1]); ok {
			return is
		}
		return text
	})
}

// authorization is the header for a registry, and the address below which it counts.
func (s settings) authorization(at *url.URL) (below *url.URL, header string) {
	path := at.Path
	for {
		key := "//" + at.Host + path + ":"
		get := func(name string) string { return s.get(key+name, strings.TrimSuffix(key, "/:")+":"+name) }
		below = &url.URL{Scheme: at.Scheme, Host: at.Host, Path: path}
		password, _ := base64.StdEncoding.DecodeString(get("_password"))
		switch {
		case get("_authToken") != "":
			return below, "Bearer " + get("_authToken")
		case get("_auth") != "":
			return below, "Basic " + get("_auth")
		case get("username") != "" && len(password) > 0:
			return below, "Basic " + base64.StdEncoding.EncodeToString([]byte(get("username")+":"+string(password)))
		case path == "/":
			return below, ""
		}
		path = path[:strings.LastIndex(strings.TrimSuffix(path, "/"), "/")+1]
	}
}

// transport sends requests through the proxy and with the certificates of the
// configuration.
func (s settings) transport() (http.RoundTripper, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	if text := s.get("https-proxy", "proxy"); text != "" && text != "false" {
		if !strings.Contains(text, "://") {
			text = "http://" + text
		}
		proxy, err := url.Parse(text)
		if err != nil || proxy.Hostname() == "" {
			return nil, errors.New("npm's configuration has a proxy that is no address: want https-proxy=http://host:port")
		}
		except := strings.FieldsFunc(s.get("noproxy", "no-proxy"), func(r rune) bool { return r == ',' || r == ' ' })
		t.Proxy = func(r *http.Request) (*url.URL, error) {
			if slices.ContainsFunc(except, func(name string) bool { return covers(name, r.URL.Hostname()) }) {
				return nil, nil
			}
			return proxy, nil
		}
	}
	t.TLSClientConfig = &tls.Config{InsecureSkipVerify: s.get("strict-ssl") == "false"}
	pem := []byte(s.get("ca"))
	if file := s.get("cafile"); file != "" {
		more, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read the certificates that npm's configuration names as cafile: %w", err)
		}
		pem = append(pem, more...)
	}
	if len(pem) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, errors.New("npm's configuration names certificates (ca or cafile) that are none in PEM form")
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return t, nil
}

// covers tells whether a name of a noproxy list stands for a host.
func covers(name, host string) bool {
	name = strings.TrimPrefix(name, ".")
	return name == "*" || host == name || strings.HasSuffix(host, "."+name)
}
