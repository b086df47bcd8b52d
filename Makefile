# `make` alone lists what can be made. The programs that are needed are go, cc,
# git and make, and npm for what says so; whatever else is needed comes by itself.

BUILD    ?= build
PREFIX   ?= /usr/local
FUZZTIME ?= 30s
DEVICE   ?= vulkan
BEFORE   ?= 5f2f1d2
NGL      ?= 5
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT    = $(shell git rev-parse HEAD 2>/dev/null)

# The npm registry that the program asks where npm's configuration names none: npm's own
# default, if npm is here.
REGISTRY  = $(shell cd / && env -u npm_config_registry -u NPM_CONFIG_REGISTRY npm config get registry --userconfig=/none --globalconfig=/none/either 2>/dev/null)

# The bindings are cgo. The version comes from git above, so go need not look
# for it, which fails in a clone that belongs to another user.
export CGO_ENABLED := 1
export GOFLAGS     := $(GOFLAGS) -buildvcs=false

# Those that hold where batches round otherwise than single tokens.
GPU_TESTS := TestGPU|TestCPUOnly|TestMask|TestEveryMask|TestSwitch|TestContextsInParallel|TestParallelSublayers|TestSequentialTwin|TestHiddenStateOfFirstLayers|TestInfluence|TestRowMasks|TestLocalRefused|TestNeuronsRefused|TestEscalation|TestRoutedEscalation|TestFullPrefill

get-go   := from https://go.dev/dl (1.26 or newer)
get-$(CC) := with `apt install build-essential`
get-npm  := with `apt install npm` or from https://nodejs.org
get-node := $(get-npm)
get-git  := with `apt install git`
get-python3 := with `apt install python3-pip`

# What the race detector does not look at: packages that share nothing between goroutines, and
# those whose arithmetic takes minutes with it; test-long has calibrate, draft, shortlist and the commands.
NO_RACE := /test$$|/scripts/|/cmd/|/demo|/internal/(archmodel|calibrate|dataset|draft|preload|randmodel|schema|score|shortlist|template|tools|search|prune|lab/.*|server/web)$$

.DEFAULT_GOAL := help
.PHONY: help demo build setup test test-long test-clients test-scale test-rpc simulate-fleet bench-fleet test-gpu test-llvmpipe test-cpus test-windows check-darwin test-architectures lint preload bench bench-shapes bench-peers bench-engine bench-serve bench-lossless bench-compare real-speed real-table bench-long neurons templates eval profile install release test-release test-bare test-arm64 fuzz clean travel models page need-browser need-page

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build setup ## build, fetch llama.cpp, show an answer whole and routed, and chat with the demo model
	@scripts/demo $(BUILD)/gallop

build: need-go need-$(CC) ## build the program into build/gallop
	go build -trimpath -ldflags '-X main.version=$(VERSION) -X main.commit=$(COMMIT) -X github.com/gallop-llm/gallop/libs.registry=$(REGISTRY)' -o $(BUILD)/gallop ./cmd/gallop

setup: build ## fetch llama.cpp's libraries into the user's cache folder
	@$(BUILD)/gallop setup

test: build setup preload need-browser need-page ## run the tests, then once more with the race detector
	go test -timeout 20m ./...
	go test -timeout 20m -race -skip 'TestMaskEquals|TestEveryMask|TestRowMasks|TestAlone|TestLocal|TestNeuronsEqualPruned|TestNeuronsSwitch' $$(go list ./... | grep -vE '$(NO_RACE)')

test-long: build setup preload need-python3 need-node need-browser need-page ## run the tests that take long, with foreign programs among them
	GALLOP_LONG=1 go test -timeout 2h ./...
	go test -timeout 2h -race ./internal/calibrate ./internal/draft ./internal/shortlist ./cmd/gallop
	scripts/test-llvmpipe '$(BUILD)' || [ $$? = 77 ]

test-clients: build setup need-python3 need-npm need-node ## let published clients in Go, Python and JavaScript, and lm-eval ask the server; part of test-long
	GALLOP_LONG=1 go test -timeout 30m -count 1 -v -run 'TestClients|TestHarness' ./internal/server ./cmd/gallop

test-scale: build setup ## run the tests with nginx, HAProxy, Slurm and GNU parallel (apt has nginx-light, haproxy, slurm-wlm, munge, parallel), and shards that are killed; part of test-long
	GALLOP_LONG=1 go test -timeout 30m -count 1 -v -run 'TestBalancers|TestCalibrateShards|TestSlurm|TestParallel$$' ./cmd/gallop ./test
	go test -C test/deploy -count 1 .

test-rpc: build setup need-python3 need-$(CC) ## build llama.cpp's RPC module and server into build/rpc, and check masks on layers that two servers compute
	scripts/build-rpc '$(BUILD)'
	GALLOP_LIB='$(abspath $(BUILD)/rpc)' GALLOP_TEST_RPC='$(abspath $(BUILD)/rpc)' go test -count 1 -v -run RPC ./llama

simulate-fleet: ## simulate fleets of replicas from build/serve.json (make bench-serve); figures go to build/fleet.json, curves into docs
	go run ./scripts/simulate-fleet -o $(BUILD)/fleet.json -serve $(BUILD)/serve.json -pictures docs

bench-fleet: build setup ## compare the simulation with three real replicas on this machine, which has to be quiet; writes build/compared.json
	go run ./scripts/simulate-fleet -o $(BUILD)/compared.json -serve $(BUILD)/serve.json -measure -gallop $(BUILD)/gallop

test-gpu: build ## run the mask tests on a GPU: DEVICE=vulkan or cuda, whole models and NGL=5 of their layers
	@$(BUILD)/gallop setup --device $(DEVICE)
	GALLOP_TEST_NGL=99 go test -timeout 3h -count 1 -run '$(GPU_TESTS)' ./llama .
	GALLOP_TEST_NGL=$(NGL) go test -timeout 3h -count 1 -run '$(GPU_TESTS)' ./llama

test-llvmpipe: build ## run the same tests on Vulkan on the CPU, with a Mesa of its own on Debian 12; takes half an hour, and an hour at first
	scripts/test-llvmpipe '$(BUILD)'

test-cpus: build setup ## run the numeric tests under each of llama.cpp's CPU modules, MODULES= names some; writes docs/cpus.md
	@go build -o $(BUILD)/testcpus ./scripts/testcpus
	@$(BUILD)/testcpus --build '$(BUILD)' --docs docs/cpus.md --modules '$(MODULES)'

test-windows: build need-npm ## build the Windows program with mingw and test it under wine (apt names both); first runs take minutes
	scripts/test-windows.sh '$(BUILD)'

check-darwin: need-go need-npm need-git ## compile and link the program for macOS, with a zig from npm; runs nothing
	@mkdir -p $(BUILD)/darwin
	scripts/check-darwin.sh '$(BUILD)'

test-architectures: build setup ## check masks on tiny models of every architecture of llama.cpp, MODELS= names some; writes docs/architectures.md and build/architectures.json
	@go build -o $(BUILD)/testarchitectures ./scripts/architectures
	@$(BUILD)/testarchitectures -build '$(BUILD)' -docs docs/architectures.md -o '$(BUILD)/architectures.json' -models '$(MODELS)'

templates: need-go need-python3 need-git ## compare published chat templates with jinja2; writes build/templates.json
	@[ -x $(BUILD)/jinja/bin/python3 ] || { python3 -m venv $(BUILD)/jinja && $(BUILD)/jinja/bin/pip install --quiet jinja2==3.1.6; }
	@[ -d $(BUILD)/templates ] || { rm -rf $(BUILD)/templates.part; python3 scripts/templates/fetch.py $(BUILD)/templates.part && mv $(BUILD)/templates.part $(BUILD)/templates; }
	$(BUILD)/jinja/bin/python3 scripts/templates/reference.py internal/template/testdata/conversations.json internal/template/testdata
	$(BUILD)/jinja/bin/python3 scripts/templates/reference.py internal/template/testdata/conversations.json $(BUILD)/templates
	GALLOP_TEMPLATES='$(abspath $(BUILD)/templates)' go test -count 1 -v -run 'OwnTemplates|PublishedTemplates' ./internal/template ./internal/tools

lint: build setup need-npm need-node ## check format, Go, C, scripts, the chat page, and that llama.cpp is the one that our header describes
	@CC='$(CC)' scripts/lint.sh
	$(BUILD)/gallop doctor

preload: need-$(CC) ## build build/libgallop-skip.so, which skips layers in any llama.cpp program
	@mkdir -p $(BUILD)
	$(CC) -std=c11 -O2 -Wall -Wextra -Werror -fPIC -shared -fvisibility=hidden -DLAYERSKIP_PRELOAD \
		-Ithird_party/llama.cpp/include third_party/layerskip/layerskip.c -o $(BUILD)/libgallop-skip.so -ldl -lpthread

bench: build setup ## measure speed: Go's benchmarks, our loop against the plain C loop, masks against stock and pruned files
	go test -run '^$$' -bench . ./...
	scripts/bench-peers
	$(BUILD)/gallop bench --shape llama-3.2-1b --percent 10,20,30,40 --pruned -p 128 -n 32 -r 20 -o json -oe md >$(BUILD)/bench.json.part
	mv $(BUILD)/bench.json.part $(BUILD)/bench.json

bench-shapes: build setup ## measure masks on the shapes of a 1B and an 8B model in three types; goes on where it was stopped
	@scripts/bench-shapes '$(BUILD)'

bench-peers: build setup ## measure speed beside stock llama.cpp from C and yzma; rows go to build/peers.json
	@scripts/bench-peers --json >$(BUILD)/peers.part || { rm -f $(BUILD)/peers.part; exit 1; }
	@mv $(BUILD)/peers.part $(BUILD)/peers.json

bench-engine: build setup need-$(CC) need-git ## measure many requests in one decode beside llama.cpp's own, and one beside the session of before (BEFORE= a git revision); writes build/engine.json
	@scripts/bench-engine '$(BUILD)' '$(BEFORE)'

bench-serve: build setup ## measure what HTTP costs: 1, 8 and 64 clients beside the engine alone; writes build/serve.json
	go build -o $(BUILD)/benchserve ./scripts/benchserve
	$(BUILD)/benchserve -o $(BUILD)/serve.json

bench-long: build setup ## measure local attention on a long document (MODELS= by name, CONTEXTS= in tokens); PARTS=quality can run beside other work, PARTS=speed later; writes build/long.json
	go build -o $(BUILD)/benchlong ./scripts/benchlong
	nice $(BUILD)/benchlong -o $(BUILD)/long.json $(if $(PARTS),-parts $(PARTS)) $(if $(CONTEXTS),-contexts $(CONTEXTS)) $(MODELS)

bench-lossless: build setup ## measure lossless drafts; rows go to build/lossless.json
	@scripts/bench-lossless '$(BUILD)'

real-speed: build setup ## measure real models beside stock decoding (MODELS= by name, after `make models`); rows go to build/real.json
	go build -o $(BUILD)/ ./scripts/firsttoken ./scripts/losslessratio ./scripts/benchbusy ./scripts/realspeed
	$(BUILD)/realspeed -bin $(BUILD) -o $(BUILD)/real.json demo $(MODELS)

# What was measured stays in build/real-table, so a run that was stopped goes on. Speeds
# want a quiet machine: PARTS=accuracy can run beside other work, PARTS=speed,table later.
real-table: build setup ## compare ways to skip on published benchmarks (DATA= their folder, MODELS= by name, EXAMPLES= of each); writes build/real-table.json
	go build -o $(BUILD)/realtable ./scripts/realtable
	nice $(BUILD)/realtable -data '$(DATA)' -folder $(BUILD)/real-table -o $(BUILD)/real-table.json $(if $(PARTS),-parts $(PARTS)) $(if $(EXAMPLES),-examples $(EXAMPLES)) $(MODELS)

neurons: build setup ## measure what answers lose without neurons, at equal bytes (DATA= folder of spec_bench.jsonl, MODELS= by name); rows go to build/neurons.json
	go run ./scripts/neurons -data '$(DATA)' -o $(BUILD)/neurons.json $(MODELS)

bench-compare: build setup need-git ## compare Go's benchmarks with those of a git REF=
	scripts/bench-compare '$(REF)'

release: need-go need-$(CC) need-git need-npm ## build archives, packages and manifests of a release into build/release, for TARGETS=linux-amd64,… or all whose C compiler is here
	go run ./scripts/release -o '$(BUILD)/release' -version '$(VERSION)' -registry '$(REGISTRY)' -targets '$(TARGETS)'

test-release: need-go need-$(CC) need-git need-npm need-python3 ## build a release twice in different folders and compare; check its manifests; install and remove its Debian package
	scripts/test-release '$(BUILD)' '$(TARGETS)'

test-bare: ## unpack build/release's archive where there is nothing but Debian's smallest system; set up, ask and chat
	scripts/test-bare '$(BUILD)'

test-arm64: build setup need-npm ## run the mask tests of a build for Linux on arm64 under qemu; compare answers and logits with this system's
	scripts/test-arm64 '$(BUILD)'

install: build setup preload ## install program and libraries below PREFIX=/usr/local; the folder can be moved
	scripts/install.sh '$(BUILD)' '$(DESTDIR)$(PREFIX)'

eval: build setup ## compare ways to choose layers on the demo model; table, pictures and eval.json go to build/eval
	@scripts/eval '$(BUILD)'

profile: build setup ## make the demo model's profile anew
	$(BUILD)/gallop calibrate -t 1 --data demo/calibration.jsonl --unit feed-forward --prefill full --depths 2,3,4 --quality 0.995 -o demo/gallop-demo.gallop.gguf

travel: build setup need-$(CC) ## measure how well a profile made on Q8_0 routes Q4_0 and Q4_K_M of the demo model; rows go to build/travel, the table into docs/results.md
	@scripts/travel '$(BUILD)'

models: need-go need-python3 ## fetch real pretrained models (2 GB), for measurements; MODELS= names some
	@go build -o $(BUILD)/models ./scripts/models
	@$(BUILD)/models $(MODELS)

fuzz: need-go need-$(CC) ## feed made-up input to each parser for FUZZTIME=30s
	scripts/fuzz.sh '$(FUZZTIME)'

page: need-go need-npm need-node ## bundle the chat page anew from internal/server/web/src
	scripts/page.sh

clean: ## remove what was built
	rm -rf $(BUILD)

need-browser:
	@scripts/need-browser.sh

# The page's test leaves accessibility out where its checker could not be fetched.
need-page:
	@scripts/page.sh packages || echo 'the packages of the chat page could not be fetched: accessibility will not be checked' >&2

# need-go ends with a sentence when there is no go.
need-%:
	@command -v '$*' >/dev/null || { echo '$* is missing: get it $(get-$*)' >&2; exit 1; }
