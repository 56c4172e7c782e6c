# Thin aliases over the command line. `make help` lists them; `make demo` works as the first command of a fresh clone.

PYTHON ?= python3
UV ?= uv

VLM ?= toy
LLM ?= smollm2
DATA ?= toy
DATA_ROOT ?=
TRAIN ?=
PROMPT ?=
SEARCH ?= glov
RUN ?=
RUNS ?=
ADAPTER ?=
SAMPLES ?=
PROCESSES ?=
ACCELERATE ?= ddp
ARGS ?=
export IMAGE EXPRESSION

# A row of the paper's tables is four names and overrides: PAPER=flo2-llama3-refcocog reads them from recipes/paper. What
# stands on the command line wins, so that PAPER=flo2-llama3-refcocog TRAIN=fast is that row, trained another way.
ifdef PAPER
ROW := recipes/paper/$(PAPER).yaml
ifeq ($(wildcard $(ROW)),)
$(error no row is called '$(PAPER)'; there are: $(basename $(notdir $(wildcard recipes/paper/*.yaml))))
endif
of_row = $(shell sed -n 's/^$(1): *//p' $(ROW))
VLM := $(call of_row,vlm)
LLM := $(call of_row,llm)
DATA := $(call of_row,data)
TRAIN := $(call of_row,train)
override ARGS := $(strip $(call of_row,overrides) $(ARGS))
endif

BIN := .venv/bin
STAMP := .venv/.installed
CLI := $(BIN)/llm-wrapper
# Any free port, so that two trainings can share a machine.
TOGETHER = $(BIN)/accelerate launch --config_file recipes/accelerate/$(ACCELERATE).yaml --num_processes $(PROCESSES) \
  --main_process_port 0 -m llm_wrapper
DATA_FLAGS = --data $(DATA) $(if $(DATA_ROOT),--data-root "$(DATA_ROOT)")
# An option for what was given with the command, nothing for a default: `ARGS="--boxes file"` goes with no detector.
typed = $(if $(and $(filter-out file,$(origin $(1))),$($(1))),--$(2) "$($(1))")
# A run knows its detector, LLM and data: with RUN or RUNS only what was given with the command, or a row, is passed on.
passed = $(if $(and $(RUN)$(RUNS),$(if $(PAPER),,untyped),$(filter file,$(origin $(1)))),,$($(1)))
NAMES = $(if $(call passed,VLM),--vlm $(VLM)) $(if $(call passed,LLM),--llm $(LLM)) $(if $(call passed,DATA),--data $(DATA)) \
  $(if $(DATA_ROOT),--data-root "$(DATA_ROOT)")
CHOICES = $(NAMES) $(if $(TRAIN),--train $(TRAIN))
RUN_FLAGS = $(foreach each,$(RUNS),--run "$(each)")
CACHES := build dist llm_wrapper.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.DEFAULT_GOAL := help
.PHONY: help install lock check test test-slow test-groundingdino demo data-check cache-detections plan train eval predict bench bench-score bench-train bench-detect bench-memory bench-metrics bench-growth headroom transfer ensemble curve search-prompts compare-methods report clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile
	@echo "  Variables: VLM=$(VLM) LLM=$(LLM) DATA=$(DATA) DATA_ROOT= TRAIN= PROMPT= SEARCH=$(SEARCH) PAPER= RUN= RUNS= ADAPTER= SAMPLES= PROCESSES= ACCELERATE=$(ACCELERATE) IMAGE= EXPRESSION= ARGS= PYTHON=$(PYTHON)"

install: $(STAMP) ## Create .venv with the locked packages; every other target does it when needed

# The stamp is written last, so an interrupted install is redone.
$(STAMP): requirements.lock requirements-nodeps.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed, and \
	'$(PYTHON)' is older or cannot be run. Name another: make install PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -r requirements.lock
	$(BIN)/python -m pip install --no-deps -r requirements-nodeps.lock
	$(BIN)/python -m pip install --no-deps --editable .
	@touch $@

# uv keeps the pins that still fit; ARGS=--upgrade renews all. torch brings the CUDA packages of its own build itself.
lock: ## Pin what pyproject.toml asks for in requirements.lock (needs uv; ARGS=--upgrade renews every pin)
	@command -v $(UV) >/dev/null || { echo "uv is needed: pip install uv, or make lock UV=/path/to/uv" >&2; exit 1; }
	@cp requirements.lock requirements.lock.new
	printf 'torch==2.13.0\n' | $(UV) pip compile pyproject.toml - --universal --python-version 3.10 \
	  --no-python-downloads --extra dev --extra quantization --no-header --no-annotate --quiet $(ARGS) \
	  --output-file requirements.lock.new || { rm -f requirements.lock.new; exit 1; }
	@{ echo "# Exact versions for Python 3.10 to 3.13. Made by 'make lock'; do not edit."; \
	  grep -vE '^(nvidia-|cuda-|triton==)' requirements.lock.new; } > requirements.lock
	@rm requirements.lock.new

check: $(STAMP) ## Lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: $(STAMP) ## Fast tests: no weights, no network, no GPU
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 $(ARGS)

test-slow: $(STAMP) ## Tests that load the real SmolLM2 or take minutes
	$(BIN)/pytest -m slow $(ARGS)

# It has an environment of its own, with a torch and a torchvision that are made for each other (5.5 GB).
test-groundingdino: .venv-groundingdino/.installed ## Compare Grounding-DINO with its authors' code, in .venv-groundingdino
	OMP_NUM_THREADS=1 .venv-groundingdino/bin/python -m pytest tests/detectors/test_groundingdino_py*.py $(ARGS)

.venv-groundingdino/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv-groundingdino
	@echo '*' > .venv-groundingdino/.gitignore
	grep -v '^torch==' requirements.lock > .venv-groundingdino/constraints.txt
	.venv-groundingdino/bin/python -m pip install --constraint .venv-groundingdino/constraints.txt \
	  torch==2.14.1 torchvision==0.29.1 --editable '.[dev,groundingdino]'
	@touch $@

demo: $(STAMP) ## The whole road on the toy data, with a report in runs/demo (ARGS=--fast: the short way)
	$(CLI) demo $(ARGS)

data-check: $(STAMP) ## Check a data set before it costs hours: DATA, DATA_ROOT
	$(CLI) data check $(DATA_FLAGS) $(ARGS)

cache-detections: $(STAMP) ## Ask the detector once and keep its boxes: VLM, DATA, DATA_ROOT
	$(CLI) cache-detections --vlm $(VLM) $(DATA_FLAGS) $(if $(TRAIN),--train $(TRAIN)) $(ARGS)

plan: $(STAMP) ## What a training takes and whether it fits, before it starts: VLM, LLM, DATA, DATA_ROOT, TRAIN
	$(CLI) plan --vlm $(VLM) --llm $(LLM) $(DATA_FLAGS) $(if $(TRAIN),--train $(TRAIN)) $(ARGS)

train: $(STAMP) ## Adapt the LLM to the detector's boxes: VLM, LLM, DATA, DATA_ROOT, TRAIN; several GPUs: PROCESSES, ACCELERATE
	$(if $(PROCESSES),$(TOGETHER),$(CLI)) train $(CHOICES) $(if $(RUN),--run "$(RUN)") $(ARGS)

eval: $(STAMP) ## Score a RUN, a foreign ADAPTER, or the untrained LLM: VLM, LLM, DATA, DATA_ROOT, PROMPT
	$(CLI) eval $(NAMES) $(if $(RUN),--run "$(RUN)") $(if $(ADAPTER),--adapter "$(ADAPTER)") $(if $(PROMPT),--prompt "$(PROMPT)") $(ARGS)

# IMAGE and EXPRESSION reach the shell through the environment, so that quotes in them are harmless.
predict: $(STAMP) ## Find one box: IMAGE=photo.jpg EXPRESSION="the man on the left", and VLM, LLM, RUN or ADAPTER
	@: "$${IMAGE:?Name the picture: make predict IMAGE=photo.jpg EXPRESSION=...}"
	@: "$${EXPRESSION:?Say what to find: make predict IMAGE=... EXPRESSION=...}"
	$(CLI) predict "$$IMAGE" "$$EXPRESSION" $(call typed,VLM,vlm) $(call typed,LLM,llm) $(call typed,RUN,run) \
	  $(call typed,ADAPTER,adapter) $(if $(PROMPT),--prompt "$(PROMPT)") $(ARGS)

bench: bench-score ## The measurement that needs no data of yours

bench-score: $(STAMP) ## Time index scoring against plain batches and greedy generation
	$(CLI) bench score $(ARGS)

bench-train: $(STAMP) ## Time packed training against TRL's SFTTrainer on real rows: DATA_ROOT
	$(CLI) bench train $(if $(DATA_ROOT),--data-root "$(DATA_ROOT)") $(ARGS)

bench-detect: $(STAMP) ## Time full-size detectors (random weights) against the plain loop: DATA, DATA_ROOT
	$(CLI) bench detect $(DATA_FLAGS) $(ARGS)

bench-memory: $(STAMP) ## Load a random Mixtral in 4 bit: peak memory against its 16-bit size (6 GB of disk)
	$(CLI) bench memory $(ARGS)

bench-metrics: $(STAMP) ## Metrics over a million predictions against a plain loop
	$(CLI) bench metrics $(ARGS)

bench-growth: $(STAMP) ## Time per expression for 100 to 10,000 expressions and 2 to 20 candidates, with a plot (ARGS="--size 100")
	$(CLI) bench growth $(ARGS)

headroom: $(STAMP) ## What a selector can gain on cached detections, before paying for training: VLM, DATA, DATA_ROOT
	$(CLI) detections headroom --vlm $(VLM) $(DATA_FLAGS) $(ARGS)

transfer: $(STAMP) ## Adapters on detectors and data they were not trained on: RUNS="runs/a runs/b" VLM="toy toy-gray" DATA
	$(CLI) transfer $(RUN_FLAGS) $(foreach each,$(call passed,VLM),--vlm $(each)) $(foreach each,$(call passed,DATA),--data $(each)) $(if $(DATA_ROOT),--data-root "$(DATA_ROOT)") $(ARGS)

ensemble: $(STAMP) ## Several detectors together, and what each adds: VLM=toy+toy-gray RUNS LLM DATA DATA_ROOT
	$(CLI) ensemble $(NAMES) $(RUN_FLAGS) $(ARGS)

curve: $(STAMP) ## P@1 against training samples: RUN=runs/a, or SAMPLES="100 300 1000" and VLM, LLM, DATA, DATA_ROOT, TRAIN
	$(CLI) curve $(if $(RUN),--run "$(RUN)") $(CHOICES) $(foreach each,$(SAMPLES),--samples $(each)) $(ARGS)

search-prompts: $(STAMP) ## An LLM searches for a better prompt, without training: SEARCH=glov and VLM, LLM, DATA, DATA_ROOT
	$(CLI) prompts search $(if $(and $(RUN),$(filter file,$(origin SEARCH))),,--search $(SEARCH)) $(CHOICES) \
	  $(if $(PROMPT),--prompt "$(PROMPT)") $(if $(RUN),--run "$(RUN)") $(ARGS)

compare-methods: $(STAMP) ## Prompting, prompt search and training at one budget, in one table: VLM, LLM, DATA, DATA_ROOT (ARGS="--labelled 200")
	$(CLI) compare-methods $(CHOICES) $(ARGS)

report: $(STAMP) ## The table again, and a page with plots and cases (report.html, report.md), from a run's folder alone: RUN
	$(if $(RUN),,$(error name the run: make report RUN=runs/.. (ls runs lists them)))
	$(CLI) report "$(RUN)" $(ARGS)

clean: ## Remove caches of build, lint and tests; leaves .venv, runs/ and data/
	rm -rf $(CACHES)
	find llm_wrapper tests -name __pycache__ -prune -exec rm -rf {} +
	@echo "Left: .venv (packages), runs/ (results), data/ (data sets, detections that cost hours). Remove those by hand."
