package main

import (
	"bytes"
	"embed"
	"strings"
	"text/template"
)

const homepage = "https://github.com/gallop-llm/gallop"

//go:embed manifests
var manifestFiles embed.FS

var manifests = template.Must(template.ParseFS(manifestFiles, "manifests/*"))

// URL is where an asset will be.
func (a described) URL() string { return homepage + "/releases/download/" + a.tag + "/" + a.name }

// described is an archive as the manifests' templates see it.
type described struct {
	asset
	tag string
}

// Sum is the archive's SHA-256 in capitals, as winget has it.
func (a described) Sum() string { return strings.ToUpper(a.sum) }

// SHA256 is the archive's.
func (a described) SHA256() string { return a.sum }

// Folder is the one that the archive's files lie in.
func (a described) Folder() string {
	return strings.TrimSuffix(strings.TrimSuffix(a.name, ".zip"), ".tar.gz")
}

// writeManifests writes the files of package managers, those of systems that were built.
func (r *release) writeManifests() error {
	archives := map[string]described{} // by names that templates can write
	for _, t := range targets {
		if a, ok := r.archive(t.name()); ok {
			archives[t.os+t.arch] = described{a, r.version}
		}
	}
	_, linux := archives["linuxamd64"]
	_, mac := archives["darwinarm64"]
	_, windows := archives["windowsamd64"]
	for _, m := range []struct {
		template, name string
		wanted         bool
	}{
		{"gallop.rb", "gallop.rb", linux || mac},
		{"scoop.json", "gallop.json", windows},
		{"winget.version.yaml", "Gallop.Gallop.yaml", windows},
		{"winget.installer.yaml", "Gallop.Gallop.installer.yaml", windows},
		{"winget.locale.yaml", "Gallop.Gallop.locale.en-US.yaml", windows},
	} {
		if !m.wanted {
			continue
		}
		var b bytes.Buffer
		err := manifests.ExecuteTemplate(&b, m.template, map[string]any{
			"Number": r.number(), "Tag": r.version, "Date": r.date.Format("2006-01-02"), "Homepage": homepage, "Archives": archives,
		})
		if err != nil {
			return err
		}
		if err := r.write(target{}, m.name, b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}
