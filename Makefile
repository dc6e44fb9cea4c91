# Two commands: `make demo` and `make test`. Both make the environment first: a virtual environment in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

# The oldest versions that the operators are for; torch brings triton 3.6.
OLDEST := .venv-oldest

# Two processes with one thread each: two torch processes with all threads slow each other down.
# Tests of one group (those on a Slurm cluster) run in one process.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

# Comparisons of methods: configurations in results/, run folders in runs/results/, pages and numbers in OUT.
METHODS := random,selected,rded,cda,sre2l,delt,fadrm
OUT := results
COMPARISONS := $(basename $(wildcard results/*.yaml))
SWEPT := fashion-mnist-convnet3-ipc10

.PHONY: results $(COMPARISONS) sweep-lr sweep-r-bn sweep-iterations install demo test test-all test-oldest cluster-test faults gpu-check lint clean help

help: ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(READY) ## the environment in .venv, with the versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (PYTHON=...)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3-venv is needed: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## distil the embedded digits with the whole pipeline; about 26 seconds on two cores
	$(BIN)/delt-hpc run digits --run runs/demo

test: $(READY) ## the tests, without the slow ones; a few minutes on two cores
	$(PYTEST) -m "not slow"

test-all: $(READY) ## all tests that run on this machine
	$(PYTEST) --durations=15

test-oldest: $(OLDEST)/ready ## the operators with the oldest torch and triton they are for, in an environment of their own
	PYTHONPATH=$(CURDIR):$(CURDIR)/kernels $(OLDEST)/bin/python -m pytest tests/kernels -m "not slow"

$(OLDEST)/ready: Makefile
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.11.0 torchvision==0.26.0 pytest pytest-xdist
	@touch $@

cluster-test: $(READY) ## the launcher on a real Slurm of several nodes on this machine (slurm/README.md)
	REQUIRE_SLURM=1 $(BIN)/python -m pytest tests/launch --durations=10

faults: $(READY) ## attacks on small runs, for 20 minutes or FAULTS_SECONDS (docs/reliability.md)
	$(BIN)/python tests/faults/suite.py

gpu-check: $(READY) ## every check that needs a GPU, and its benchmarks, into gpu-check/
	.ci/gpu-check $(BIN)/python gpu-check

lint: $(READY) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

results: $(COMPARISONS) ## compare the methods in every configuration of results/ (hours; resumes; results/README.md)

$(COMPARISONS): $(READY)
	$(BIN)/delt-hpc compare $@.yaml --methods $(METHODS) --run runs/$@ --out $(OUT)/$(@F)

sweep-lr: $(READY) ## DELT's learning rate on Fashion-MNIST, with paired seeds
	$(BIN)/delt-hpc compare results/$(SWEPT).yaml --methods delt --sweep recover.lr=0.01,0.05,0.25 \
		--run runs/results/$(SWEPT) --out $(OUT)/$(SWEPT)-lr

sweep-r-bn: $(READY) ## the weight of the BatchNorm term in DELT on Fashion-MNIST
	$(BIN)/delt-hpc compare results/$(SWEPT).yaml --methods delt --sweep recover.r_bn=0.0,0.01,0.1 \
		--run runs/results/$(SWEPT) --out $(OUT)/$(SWEPT)-r-bn

sweep-iterations: $(READY) ## the iterations of CDA, which has one round, on Fashion-MNIST
	$(BIN)/delt-hpc compare results/$(SWEPT).yaml --methods cda --sweep recover.iterations=400,1000,4000 \
		--run runs/results/$(SWEPT) --out $(OUT)/$(SWEPT)-iterations

clean: ## remove the environments and the demo's run and images
	rm -rf $(VENV) $(OLDEST) runs/demo data/digits
