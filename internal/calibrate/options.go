package calibrate

import (
	"cmp"
	"fmt"
	"time"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// Unit is what a search skips at once.
type Unit string

// The units.
const (
	Layers       Unit = "layer"        // whole layers, as in PuDDing
	Sublayers    Unit = "sublayer"     // attention and feed-forward halves
	FeedForwards Unit = "feed-forward" // feed-forward halves alone: masks that allow escalation
)

// ParseUnit reads the name of a unit.
func ParseUnit(text string) (Unit, error) {
	for _, u := range []Unit{Layers, Sublayers, FeedForwards} {
		if text == string(u) {
			return u, nil
		}
	}
	return "", fmt.Errorf("unit is %q, want layer, sublayer or feed-forward", text)
}

// Options says how a profile is made. Zero fields are the defaults.
type Options struct {
	Examples []dataset.Example  // free prompts are answered by the whole model
	Unit     Unit               // "" = Sublayers
	Prefill  skip.Prefill       // what losses are measured with, and the profile's default
	Features string             // of the router, as package router names them; "" = its default
	Preset   []router.Candidate // sets to take instead of searching; nil = search

	// Depths are the candidates' depths in layers' worth of weights, ascending;
	// nil = a twelfth, a sixth, a quarter and a third of the layers.
	Depths []float64

	PerTask  int // examples of a task that the search looks at; 0 = 64
	Train    int // examples of a task that the router learns from at most; 0 = all
	Answer   int // tokens of the whole model's own answers at most; 0 = 64
	Clusters int // tasks made of prompts that have none; 0 = 8

	Quality float64       // the profile's default, 0 to 1; 0 = 0.98
	Budget  time.Duration // for the searches of all tasks together; 0 = no limit
	Time    time.Duration // for everything, which then makes do with fewer prompts and sets, and searches no masks to draft under; 0 = no limit
	Threads int
	Seed    uint64
	Folder  string // for what has been measured so far; a run with the same data and settings resumes from it

	// Shard, unless nil, makes the run one of several processes that share the work by logs in
	// Folder. Such a run has no Budget, no Time and no Pause.
	Shard *Shard

	// Pause, while it is on, holds up what is done, and does not count for Time; nil =
	// never. A decode that is running is done again, so that last digits may differ. The
	// memory beside the model's is bounded then, see [Memory].
	Pause *llama.Pause

	quick bool // fewer depths

	// Usable gets the profile as soon as it can be used, and each time that it has
	// become better, with a sentence on what it has. The last one is [Run]'s result.
	// An error ends the run. It may be nil.
	Usable func(p *router.Profile, has string) error

	// Progress tells how far a stage is; total may be an estimate. It may be nil.
	Progress func(stage string, done, total int)
}

// LogFile is the name of the file in [Options].Folder that each measurement is added to.
const LogFile = "losses.log"

// What --quick gives up: fewer examples, shorter answers, fewer and coarser candidates.
const (
	quickPerTask  = 12
	quickTrain    = 20
	quickAnswer   = 24
	quickClusters = 4
	quickTime     = 5 * time.Minute
)

// Quick makes o finish within its Time, 0 = 5 minutes, which is enough on a model of a
// billion parameters and two cores, and says what that gives up.
func (o *Options) Quick() string {
	o.quick, o.PerTask, o.Train, o.Answer, o.Clusters = true, quickPerTask, quickTrain, quickAnswer, quickClusters
	o.Time = cmp.Or(o.Time, quickTime)
	return fmt.Sprintf("quick: at most %d prompts, answers cut at %d tokens; sets for all prompts at three depths first, then, if %s are not over, for each of %d tasks; no masks to draft under",
		quickClusters*quickTrain, quickAnswer, o.Time, quickClusters)
}
