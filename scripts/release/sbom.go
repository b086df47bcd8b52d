package main

import (
	"debug/buildinfo"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	llamacpp "github.com/gallop-llm/gallop/third_party/llama.cpp"
)

// component is a part, as CycloneDX 1.5 has it.
type component struct {
	Type        string     `json:"type"`
	Ref         string     `json:"bom-ref,omitempty"`
	Name        string     `json:"name"`
	Version     string     `json:"version"`
	Description string     `json:"description,omitempty"`
	Hashes      []cdxHash  `json:"hashes,omitempty"`
	Licenses    []licence  `json:"licenses,omitempty"`
	PURL        string     `json:"purl"`
	Properties  []property `json:"properties,omitempty"`
}

type (
	cdxHash struct {
		Alg     string `json:"alg"`
		Content string `json:"content"`
	}
	licence struct {
		License struct {
			ID string `json:"id"`
		} `json:"license"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
)

func mit() []licence {
	l := licence{}
	l.License.ID = "MIT"
	return []licence{l}
}

// partsList is a list of what is in a program, and what it fetches, in CycloneDX's format.
func (r *release) partsList(t target, program string) ([]byte, error) {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return nil, err
	}
	parts := []component{}
	for _, m := range info.Deps {
		version, sum := m.Version, m.Sum
		if m.Replace != nil {
			version, sum = m.Replace.Version, m.Replace.Sum
		}
		purl := "pkg:golang/" + m.Path + "@" + version
		parts = append(parts, component{Type: "library", Ref: purl, Name: m.Path, Version: version, PURL: purl,
			Properties: []property{{"gallop:go.sum", sum}}})
	}
	purl := "pkg:golang/std@" + strings.TrimPrefix(info.GoVersion, "go")
	parts = append(parts, component{Type: "library", Ref: purl, Name: "std", Version: info.GoVersion, PURL: purl})
	fetched, err := llamaParts(t)
	if err != nil {
		return nil, err
	}
	parts = append(parts, fetched...)
	self := "pkg:golang/" + info.Main.Path + "@" + r.version
	bom := struct {
		Schema   string `json:"$schema"`
		Format   string `json:"bomFormat"`
		Spec     string `json:"specVersion"`
		Version  int    `json:"version"`
		Metadata struct {
			Timestamp string    `json:"timestamp"`
			Component component `json:"component"`
		} `json:"metadata"`
		Components []component `json:"components"`
	}{Schema: "http://cyclonedx.org/schema/bom-1.5.schema.json", Format: "CycloneDX", Spec: "1.5", Version: 1, Components: parts}
	bom.Metadata.Timestamp = r.date.Format(time.RFC3339)
	bom.Metadata.Component = component{Type: "application", Ref: self, Name: "gallop", Version: r.version, Licenses: mit(), PURL: self,
		Properties: []property{{"gallop:target", t.name()}, {"gallop:commit", r.commit}}}
	text, err := json.MarshalIndent(bom, "", "  ")
	return append(text, '\n'), err
}

// llamaParts are llama.cpp's packages that the program of a system can fetch.
func llamaParts(t target) (parts []component, err error) {
	systems := map[string]string{"linux": "linux", "windows": "win", "darwin": "mac"}
	platform := systems[t.os] + "-" + strings.Replace(t.arch, "amd64", "x64", 1)
	for _, device := range []string{"cpu", "cuda", "metal", "vulkan"} {
		text, err := llamacpp.Locks.ReadFile("npm/" + device + "/package-lock.json")
		if err != nil {
			return nil, err
		}
		var lock struct {
			Packages map[string]struct {
				Version, Integrity, License string
			}
		}
		if err := json.Unmarshal(text, &lock); err != nil {
			return nil, fmt.Errorf("read the lock file of %s: %w", device, err)
		}
		for place, p := range lock.Packages {
			name, ok := strings.CutPrefix(place, "node_modules/")
			if base := path.Base(name); !ok || base != platform && !strings.HasPrefix(base, platform+"-") { // as libs has it
				continue
			}
			sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(p.Integrity, "sha512-"))
			if err != nil {
				return nil, fmt.Errorf("the lock file of %s: %w", device, err)
			}
			purl := "pkg:npm/%40" + strings.TrimPrefix(name, "@") + "@" + p.Version
			parts = append(parts, component{Type: "library", Ref: purl, Name: name, Version: p.Version, PURL: purl, Licenses: mit(),
				Description: "llama.cpp for " + path.Base(name) + "; fetched by gallop setup, not contained",
				Hashes:      []cdxHash{{"SHA-512", fmt.Sprintf("%x", sum)}}})
		}
	}
	slices.SortFunc(parts, func(a, b component) int { return strings.Compare(a.PURL, b.PURL) })
	return parts, nil
}
