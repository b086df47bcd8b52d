// Package deploy checks the files of deploy/ with the parsers of the programs that will read them.
// It is a module of its own, so that the product needs none of these.
package deploy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/opencontainers/go-digest"
	promql "github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/require"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	strict "sigs.k8s.io/yaml"
)

const folder = "../../deploy/"

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(folder + name)
	require.NoError(t, err)
	return data
}

// TestKubernetes decodes each manifest into Kubernetes' own type. An unknown or repeated field is an
// error. Then it compares what must agree between them.
func TestKubernetes(t *testing.T) {
	var claim core.PersistentVolumeClaim
	var deployment apps.Deployment
	var service core.Service
	var scaler autoscaling.HorizontalPodAutoscaler
	into := map[string]any{
		"v1 PersistentVolumeClaim": &claim, "apps/v1 Deployment": &deployment, "v1 Service": &service,
		"autoscaling/v2 HorizontalPodAutoscaler": &scaler,
	}
	for document, kind := range documents(t, "kubernetes.yaml") {
		name := kind.APIVersion + " " + kind.Kind
		require.Contains(t, into, name)
		require.NoError(t, strict.UnmarshalStrict(document, into[name]), name)
		delete(into, name)
	}
	require.Empty(t, into)

	pod := deployment.Spec.Template
	require.Len(t, pod.Spec.Containers, 1)
	c := pod.Spec.Containers[0]
	require.Equal(t, deployment.Spec.Selector.MatchLabels, pod.Labels)
	require.Equal(t, service.Spec.Selector, pod.Labels)
	require.Equal(t, deployment.Name, scaler.Spec.ScaleTargetRef.Name)
	require.Equal(t, c.Ports[0].Name, service.Spec.Ports[0].TargetPort.StrVal)
	require.Equal(t, core.ServiceAffinityClientIP, service.Spec.SessionAffinity)
	require.Equal(t, "/ready", c.ReadinessProbe.HTTPGet.Path)
	for _, probe := range []*core.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
		require.True(t, probe == c.ReadinessProbe || probe.HTTPGet.Path == "/health")
		require.Equal(t, c.Ports[0].Name, probe.HTTPGet.Port.StrVal)
	}
	volumes := map[string]core.Volume{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = v
	}
	for _, mount := range c.VolumeMounts {
		require.Contains(t, volumes, mount.Name)
	}
	require.Len(t, c.VolumeMounts, len(volumes))
	models := volumes["models"].PersistentVolumeClaim
	require.Equal(t, claim.Name, models.ClaimName)
	require.True(t, models.ReadOnly && c.VolumeMounts[0].ReadOnly)
	require.Equal(t, []core.PersistentVolumeAccessMode{core.ReadOnlyMany}, claim.Spec.AccessModes)
	require.True(t, *pod.Spec.SecurityContext.RunAsNonRoot && *c.SecurityContext.ReadOnlyRootFilesystem)
	require.Contains(t, string(read(t, "grafana.json")), scaler.Spec.Metrics[0].Pods.Metric.Name, "which the dashboard's test finds in /metrics")
}

// documents are those of a file in deploy, each with its kind.
func documents(t *testing.T, name string) iter.Seq2[[]byte, v1.TypeMeta] {
	t.Helper()
	return func(yield func([]byte, v1.TypeMeta) bool) {
		reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(read(t, name))))
		for {
			document, err := reader.Read()
			if err == io.EOF {
				return
			}
			require.NoError(t, err)
			var kind v1.TypeMeta
			require.NoError(t, strict.Unmarshal(document, &kind))
			if !yield(document, kind) {
				return
			}
		}
	}
}

// TestCalibrateJobs decodes the Jobs that calibrate in shards, and compares what must agree.
func TestCalibrateJobs(t *testing.T) {
	var jobs []batch.Job
	var claim core.PersistentVolumeClaim
	for document, kind := range documents(t, "calibrate/kubernetes.yaml") {
		if kind.Kind == "Job" {
			require.Equal(t, "batch/v1", kind.APIVersion)
			var job batch.Job
			require.NoError(t, strict.UnmarshalStrict(document, &job))
			jobs = append(jobs, job)
			continue
		}
		require.Equal(t, "PersistentVolumeClaim", kind.Kind)
		require.NoError(t, strict.UnmarshalStrict(document, &claim))
	}
	require.Len(t, jobs, 2)
	shards, merge := jobs[0].Spec, jobs[1].Spec
	require.Equal(t, batch.IndexedCompletion, *shards.CompletionMode)
	require.Equal(t, *shards.Completions, *shards.Parallelism, "they wait for each other")
	a, b := shards.Template.Spec.Containers[0], merge.Template.Spec.Containers[0]
	at := slices.Index(a.Args, "--shard")
	require.Equal(t, fmt.Sprintf("$(JOB_COMPLETION_INDEX)/%d", *shards.Completions), a.Args[at+1])
	require.Equal(t, a.Args[:at], b.Args[:at], "the same flags")
	require.Equal(t, []string{"--wait"}, a.Args[at+2:])
	require.Equal(t, []string{"--merge", "--wait"}, b.Args[at:at+2])
	require.Equal(t, []core.PersistentVolumeAccessMode{core.ReadWriteMany}, claim.Spec.AccessModes)
	for _, job := range []batch.JobSpec{shards, merge} {
		pod := job.Template.Spec
		names := map[string]bool{}
		for _, v := range pod.Volumes {
			names[v.Name] = true
		}
		require.Len(t, pod.Containers[0].VolumeMounts, len(names))
		for _, mount := range pod.Containers[0].VolumeMounts {
			require.True(t, names[mount.Name], mount.Name)
		}
		require.Equal(t, claim.Name, pod.Volumes[1].PersistentVolumeClaim.ClaimName)
		require.Equal(t, core.RestartPolicyOnFailure, pod.RestartPolicy)
	}
}

// image answers for the images that the Dockerfile starts from, which are not at hand.
type image struct{}

func (image) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	config := []byte(`{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/usr/local/bin:/usr/bin:/bin"]}}`)
	return ref, digest.FromBytes(config), config, nil
}

// TestDockerfile lets BuildKit turn the Dockerfile into the steps of a build, and has its linter look
// at it, as `docker build --check` does.
func TestDockerfile(t *testing.T) {
	file := read(t, "Dockerfile")
	var warnings []string
	options := dockerfile2llb.ConvertOpt{MetaResolver: image{}, Warn: func(rule, _, _, message string, _ []parser.Range) {
		warnings = append(warnings, rule+": "+message)
	}}
	built, err := dockerfile2llb.Dockerfile2LLB(t.Context(), file, options)
	require.NoError(t, err)
	require.Empty(t, warnings)
	_, err = built.State.Marshal(t.Context())
	require.NoError(t, err)
	c := built.Image.Config
	require.Equal(t, "65532:65532", c.User, "not root")
	require.Equal(t, []string{"gallop"}, c.Entrypoint)
	require.NotNil(t, c.Healthcheck)
	require.Contains(t, strings.Join(c.Healthcheck.Test, " "), "/health")
	require.Contains(t, c.ExposedPorts, "8080/tcp")
}

// TestDashboard decodes the dashboard by Grafana's schema, in which a field that is unknown or of
// another type is an error, and parses its expressions as Prometheus does.
func TestDashboard(t *testing.T) {
	data := read(t, "grafana.json")
	var d dashboard.Dashboard
	require.Empty(t, d.UnmarshalJSONStrict(data)) // a list of errors, which is never nil
	require.NotEmpty(t, *d.Title)
	require.NotEmpty(t, *d.Uid)

	var plain struct {
		Templating struct{ List []struct{ Name string } }
		Panels     []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ RefID, Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(data, &plain))
	variables := map[string]bool{"__rate_interval": true, "__all": true} // of Grafana itself
	for _, v := range plain.Templating.List {
		variables[v.Name] = true
	}
	variable := regexp.MustCompile(`\$\{?(\w+)\}?`)
	for _, m := range variable.FindAllSubmatch(data, -1) {
		require.True(t, variables[string(m[1])], "%s is not declared", m[1])
	}
	var taken [200][24]string
	ids := map[int]bool{}
	for _, p := range plain.Panels {
		require.False(t, ids[p.ID], "two panels have number %d", p.ID)
		ids[p.ID] = true
		for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				require.Empty(t, taken[y][x], "%s lies over it", p.Title)
				taken[y][x] = p.Title
			}
		}
		require.Equal(t, p.Type != "row", len(p.Targets) > 0, p.Title)
		for _, target := range p.Targets {
			_, err := promql.NewParser(promql.Options{}).ParseExpr(variable.ReplaceAllString(strings.ReplaceAll(target.Expr, "$__rate_interval", "5m"), "x"))
			require.NoError(t, err, "%s: %s", p.Title, target.Expr)
		}
	}
}
