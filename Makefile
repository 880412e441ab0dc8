# make demo     the product's main job, end to end, on real images
# make test     the tests, with guarded counts
# make lint     style, types, import directions, generated files
# make fuzz     every decoder, the verifier and the service under hostile input, FUZZ_SECONDS each
# make agree    two verifiers asked about a thousand proofs: some twenty minutes
# make mutate   changes the verifier in one place at a time and sees whether the tests notice: an hour or two
# make assurance   how often cheats succeed, what proofs show: measured and drawn, some fifteen minutes
# make soak     the job service under kill -9, crowds, large uploads and clients that stall: some twenty-five minutes
# make bench    measure this machine and render the tables of README.md and benchmarks/PHASES.md: some minutes
# make bench-board    how fast a board is, on SQLite and, where it is installed, on PostgreSQL: some minutes
# make bench-workers  one worker of a Ray cluster against two: some minutes
# make bench-device   proving on a GPU, against its targets; needs one, and the extra cuda
# make bench-large, bench-curves, bench-peers    the same for large networks, growing sizes, another prover: hours in all
#
# Needs Python 3.11 to 3.13, pip and gcc, and openssl for the tests; everything else goes into .venv.

PYTHON ?= python3
VENV ?= .venv
FUZZ_SECONDS ?= 600
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
# $(call protoc,DIR): the Python stubs and their types, generated into DIR.
protoc = PATH="$(BIN):$$PATH" python -m grpc_tools.protoc -I proto --python_out=$(1) --grpc_python_out=$(1) \
	--mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) proto/zkmark/v1/zkmark.proto

.PHONY: demo test lint fuzz agree mutate assurance bench bench-board bench-workers bench-device bench-large bench-curves bench-peers soak stubs venv clean

demo: venv
	PATH="$(BIN):$$PATH" bash examples/quickstart.sh

test: venv
	$(BIN)/python -m pytest --guard-counts

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing/sending.py
	$(BIN)/lint-imports --cache-dir build/import-linter
	mkdir -p build/stubs
	$(call protoc,build/stubs)
	diff -r -x '*.proto' -x '__init__.py' -x '__pycache__' -x py.typed build/stubs/zkmark/v1 proto/zkmark/v1
	$(BIN)/python -m benchmarks --check

fuzz: venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[fuzz]' || true
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --report

agree: venv
	$(BIN)/python -m tests.adversary.agree
	$(BIN)/python -m tests.adversary.table

mutate: venv
	nice -n 15 $(BIN)/python -m tests.mutation

assurance: venv
	$(BIN)/python -m tests.assurance
	$(BIN)/python -m tests.adversary.table

bench: venv
	$(BIN)/python -m benchmarks

bench-board: venv
	$(BIN)/python -m benchmarks.board
	$(BIN)/python -m benchmarks --render

bench-workers: venv
	$(BIN)/python -m benchmarks workers --runs 1

bench-device: venv
	$(BIN)/python -m benchmarks device

bench-large: venv
	$(BIN)/python -m benchmarks large --runs 1

bench-curves: venv
	$(BIN)/python -m benchmarks curves --runs 1

bench-peers: venv
	test -x build/peers/bin/python || $(PYTHON) -m venv build/peers
	build/peers/bin/python -m pip install --quiet '.[peers]'
	$(BIN)/python -m benchmarks peers

soak: venv
	$(BIN)/python -m benchmarks.soak
	$(BIN)/python -m benchmarks --render

stubs: venv
	$(call protoc,proto)

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "zkmark needs Python 3.11 to 3.13: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ml,dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
