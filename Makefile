# make demo    watch a token live exactly as long as its task
# make test    all tests, with the race detector
# make bench   what a broker and its Redis cost, beside one raw signature; takes minutes
# make lint    gofmt, go vet, staticcheck

GO ?= go
export CGO_ENABLED ?= 1

# A module of its own: other projects' JWT libraries are in no user's go.mod.
OUTSIDE = sdk/verify/outside

# Another one: client-go would triple the size of errand.
WATCHER = cmd/errand-k8s

.PHONY: demo test bench lint deps

demo:
	$(GO) run ./cmd/errand demo

test: deps
	$(GO) test -race -timeout 20m ./...
	cd $(WATCHER) && $(GO) test -race -timeout 10m ./...

bench: deps
	$(GO) run ./cmd/errand/internal/bench
	$(GO) test -run '^$$' -bench . -benchtime 500x ./broker/server
	$(GO) test -run '^$$' -bench 'Verify$$|Denied' -benchtime 3000x ./sdk/verify

lint:
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "gofmt would change: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	cd $(OUTSIDE) && $(GO) vet ./... && $$(cd $(CURDIR) && $(GO) tool -n staticcheck) ./...
	cd $(WATCHER) && $(GO) vet ./... && $$(cd $(CURDIR) && $(GO) tool -n staticcheck) ./...

# The race detector needs a C compiler, the tests of store/redis real servers, those of deploy what
# it says, and those of $(OUTSIDE) Node.js. What is missing is installed when that is possible, and
# named when not.
deps:
	@command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || .ci/install gcc libc6-dev
	@command -v redis-server >/dev/null 2>&1 || .ci/install redis-server
	@command -v redis-sentinel >/dev/null 2>&1 || .ci/install redis-sentinel
	@command -v haproxy >/dev/null 2>&1 || .ci/install haproxy
	@command -v curl >/dev/null 2>&1 || .ci/install curl
	@command -v bash >/dev/null 2>&1 || .ci/install bash
	@command -v npm >/dev/null 2>&1 || .ci/install nodejs npm
	@npm ci --prefix $(OUTSIDE)/jose --ignore-scripts --no-audit --no-fund --silent
