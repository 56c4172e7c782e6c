# Thin aliases over the command line. `make help` lists them; `make demo` works as the first command of a fresh clone.

# Variables from the command line and the environment stay text. Make would expand a `$(shell ..)` in them, and the shell
# would run what follows a `;`: so no variable below is expanded by make, and each reaches the shell quoted, as "$$NAME".
$(foreach each,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(each)))),$(eval override $(each) := $$(value $(each)))))
PYTHON ?= python3
UV ?= uv
ACCELERATE ?= ddp
export PYTHON UV VLM LLM DATA DATA_ROOT TRAIN PROMPT SEARCH PAPER PLUGIN RUN RUNS ADAPTER SAMPLES PROCESSES ACCELERATE IMAGE EXPRESSION ARGS

override BIN := .venv/bin
override STAMP := .venv/.installed
# The words of ARGS are split by the command line itself, which knows quotes and runs nothing. A row of the paper's tables
# (PAPER=flo2-llama3-refcocog) is read there, too; what is typed wins over it.
override PROGRAM := $(BIN)/llm-wrapper
override BENCH := LLM_WRAPPER_ARGS="$$ARGS" $(BIN)/python benchmarks
override BEFORE := $${PLUGIN:+--plugin "$$PLUGIN"} $${PAPER:+--recipe "$$PAPER"}
override CLI := LLM_WRAPPER_ARGS="$$ARGS" $(PROGRAM) $(BEFORE)
override DATA_FLAGS := $${DATA:+--data "$$DATA"} $${DATA_ROOT:+--data-root "$$DATA_ROOT"}
override CHOICES := $${VLM:+--vlm "$$VLM"} $${LLM:+--llm "$$LLM"} $(DATA_FLAGS) $${TRAIN:+--train "$$TRAIN"}
# Lists become words, and each word an option. Nothing in them is a pattern of file names.
override EACH = set -f; for each in $$$(1); do set -- "$$@" --$(2) "$$each"; done;
override CACHES := build dist llm_wrapper_rec.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

.DEFAULT_GOAL := help
.PHONY: help install lock check test test-slow test-wheel test-groundingdino demo data-check cache-detections plan train eval predict bench bench-score bench-train bench-detect bench-memory bench-metrics bench-growth headroom transfer ensemble curve search-prompts compare-methods report cases families fuzz clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile
	@echo "  Variables: VLM=toy LLM=smollm2 DATA=toy DATA_ROOT= TRAIN= PROMPT= SEARCH=glov PAPER= PLUGIN= RUN= RUNS= ADAPTER= SAMPLES= PROCESSES= ACCELERATE=ddp IMAGE= EXPRESSION= ARGS= PYTHON=python3"

install: $(STAMP) ## Create .venv with the locked packages; every other target does it when needed

# The stamp is written last, so an interrupted install is redone.
$(STAMP): requirements.lock requirements-nodeps.lock pyproject.toml
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed, and \
	'$$PYTHON' is older or cannot be run. Name another: make install PYTHON=python3.12" >&2; exit 1; }
	"$$PYTHON" -m venv .venv
	$(BIN)/python -m pip install -r requirements.lock
	$(BIN)/python -m pip install --no-deps -r requirements-nodeps.lock
	$(BIN)/python -m pip install --no-deps --editable .
	@touch $@

# uv keeps the pins that still fit; ARGS=--upgrade renews all. torch brings the CUDA packages of its build.
lock: ## Pin what pyproject.toml asks for in requirements.lock (needs uv; ARGS=--upgrade renews every pin)
	@command -v "$$UV" >/dev/null || { echo "uv is needed: pip install uv, or make lock UV=/path/to/uv" >&2; exit 1; }
	@cp requirements.lock requirements.lock.new
	set -f; printf 'torch==2.13.0\n' | "$$UV" pip compile pyproject.toml - --universal --python-version 3.10 \
	  --no-python-downloads --extra dev --no-header --no-annotate --quiet $$ARGS \
	  --output-file requirements.lock.new || { rm -f requirements.lock.new; exit 1; }
	@{ echo "# Exact versions for Python 3.10 to 3.13. Made by 'make lock'; do not edit."; \
	  grep -vE '^(nvidia-|cuda-|triton==)' requirements.lock.new; } > requirements.lock
	@rm requirements.lock.new

check: $(STAMP) ## Lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: $(STAMP) ## Fast tests: no weights, no network, no GPU
	OMP_NUM_THREADS=1 PYTEST_ADDOPTS="-n 2 $$ARGS" $(BIN)/pytest

test-slow: $(STAMP) ## Tests that load the real SmolLM2 or take minutes
	PYTEST_ADDOPTS="-m slow $$ARGS" $(BIN)/pytest

# As a user installs it: from the index, with what pyproject.toml asks for today, and run outside the checkout (5 GB).
test-wheel: .venv-wheel/.installed ## Install the package with its dependencies in .venv-wheel, and use it in an empty folder
	LLM_WRAPPER_WHEEL_PYTHON="$$PWD/.venv-wheel/bin/python" PYTEST_ADDOPTS="-m slow $$ARGS" \
	  .venv-wheel/bin/python -m pytest tests/journeys

.venv-wheel/.installed: requirements-nodeps.lock pyproject.toml setup.py
	"$$PYTHON" -m venv .venv-wheel
	@echo '*' > .venv-wheel/.gitignore
	.venv-wheel/bin/python -m pip install '.[dev]'
	.venv-wheel/bin/python -m pip install --no-deps -r requirements-nodeps.lock
	@touch $@

# In a separate environment, with a torch and a torchvision that are made for each other (5.5 GB).
test-groundingdino: .venv-groundingdino/.installed ## Compare Grounding-DINO with its authors' code, in .venv-groundingdino
	OMP_NUM_THREADS=1 PYTEST_ADDOPTS="$$ARGS" .venv-groundingdino/bin/python -m pytest tests/detectors/test_groundingdino_py*.py

.venv-groundingdino/.installed: requirements.lock pyproject.toml
	"$$PYTHON" -m venv .venv-groundingdino
	@echo '*' > .venv-groundingdino/.gitignore
	grep -v '^torch==' requirements.lock > .venv-groundingdino/constraints.txt
	.venv-groundingdino/bin/python -m pip install --constraint .venv-groundingdino/constraints.txt \
	  torch==2.14.1 torchvision==0.29.1 --editable '.[dev,groundingdino]'
	@touch $@

demo: $(STAMP) ## The whole road on the toy data, with a report in runs/demo (ARGS=--fast: the short way)
	$(CLI) demo

data-check: $(STAMP) ## Check a data set before it costs hours: DATA, DATA_ROOT
	$(CLI) check-data $(DATA_FLAGS)

cache-detections: $(STAMP) ## Ask the detector once and keep its boxes: VLM, DATA, DATA_ROOT
	$(CLI) cache-detections $${VLM:+--vlm "$$VLM"} $(DATA_FLAGS) $${TRAIN:+--train "$$TRAIN"}

plan: $(STAMP) ## What a training takes and whether it fits, before it starts: VLM, LLM, DATA, DATA_ROOT, TRAIN
	$(CLI) train --plan $(CHOICES)

# Any free port, so that two trainings can share a machine.
train: $(STAMP) ## Adapt the LLM to the detector's boxes: VLM, LLM, DATA, DATA_ROOT, TRAIN; several GPUs: PROCESSES, ACCELERATE
	set -- $(PROGRAM); if [ -n "$$PROCESSES" ]; then set -- $(BIN)/accelerate launch --config_file \
	  "recipes/accelerate/$$ACCELERATE.yaml" --num_processes "$$PROCESSES" --main_process_port 0 -m llm_wrapper; fi; \
	  LLM_WRAPPER_ARGS="$$ARGS" "$$@" $(BEFORE) train $(CHOICES) $${RUN:+--run "$$RUN"}

eval: $(STAMP) ## Score a RUN, a third-party ADAPTER, or the untrained LLM: VLM, LLM, DATA, DATA_ROOT, PROMPT
	$(CLI) eval $${VLM:+--vlm "$$VLM"} $${LLM:+--llm "$$LLM"} $(DATA_FLAGS) $${RUN:+--run "$$RUN"} \
	  $${ADAPTER:+--adapter "$$ADAPTER"} $${PROMPT:+--prompt "$$PROMPT"}

predict: $(STAMP) ## Find one box: IMAGE=photo.jpg EXPRESSION="the man on the left", and VLM, LLM, RUN or ADAPTER
	@: "$${IMAGE:?Name the picture: make predict IMAGE=photo.jpg EXPRESSION=...}"
	@: "$${EXPRESSION:?Say what to find: make predict IMAGE=... EXPRESSION=...}"
	$(CLI) predict $${VLM:+--vlm "$$VLM"} $${LLM:+--llm "$$LLM"} $${RUN:+--run "$$RUN"} $${ADAPTER:+--adapter "$$ADAPTER"} \
	  $${PROMPT:+--prompt "$$PROMPT"} "$$IMAGE" "$$EXPRESSION"

bench: bench-score ## The measurement that needs no data of yours

bench-score: $(STAMP) ## Time index scoring against plain batches and greedy generation
	$(BENCH)/score.py

bench-train: $(STAMP) ## Time packed training against TRL's SFTTrainer on real rows: DATA_ROOT
	$(BENCH)/train.py $${DATA_ROOT:+--data-root "$$DATA_ROOT"}

bench-detect: $(STAMP) ## Time full-size detectors (random weights) against the plain loop: DATA, DATA_ROOT
	$(BENCH)/detect.py $(DATA_FLAGS)

bench-memory: $(STAMP) ## Load a random Mixtral in 4 bit: peak memory against its 16-bit size (6 GB of disk)
	$(BENCH)/memory.py

bench-metrics: $(STAMP) ## Metrics over a million predictions against a plain loop
	$(BENCH)/metrics.py

bench-growth: $(STAMP) ## Time per expression for 100 to 10,000 expressions and 2 to 20 candidates, with a plot (ARGS="--size 100")
	$(BENCH)/growth.py

headroom: $(STAMP) ## What a selector can gain on cached detections, before paying for training: VLM, DATA, DATA_ROOT
	$(CLI) detections headroom $${VLM:+--vlm "$$VLM"} $(DATA_FLAGS)

transfer: $(STAMP) ## Adapters on detectors and data they were not trained on: RUNS="runs/a runs/b" VLM="toy toy-gray" DATA
	$(call EACH,RUNS,run) $(call EACH,VLM,vlm) $(call EACH,DATA,data) \
	  $(CLI) transfer "$$@" $${DATA_ROOT:+--data-root "$$DATA_ROOT"}

ensemble: $(STAMP) ## Several detectors together, and what each adds: VLM=toy+toy-gray RUNS LLM DATA DATA_ROOT
	$(call EACH,RUNS,run) if [ -z "$$RUNS$$PAPER" ]; then LLM="$${LLM:-smollm2}"; fi; \
	  $(CLI) ensemble $${VLM:+--vlm "$$VLM"} $${LLM:+--llm "$$LLM"} $(DATA_FLAGS) "$$@"

curve: $(STAMP) ## P@1 against training samples: RUN=runs/a, or SAMPLES="100 300 1000" and VLM, LLM, DATA, DATA_ROOT, TRAIN
	$(call EACH,SAMPLES,samples) $(CLI) curve $${RUN:+--run "$$RUN"} $(CHOICES) "$$@"

search-prompts: $(STAMP) ## An LLM searches for a better prompt, without training: SEARCH=glov and VLM, LLM, DATA, DATA_ROOT
	$(CLI) search-prompts $${SEARCH:+--search "$$SEARCH"} $(CHOICES) $${PROMPT:+--prompt "$$PROMPT"} $${RUN:+--run "$$RUN"}

compare-methods: $(STAMP) ## Prompting, prompt search and training at one budget, in one table: VLM, LLM, DATA, DATA_ROOT (ARGS="--labelled 200")
	$(CLI) compare-methods $(CHOICES)

report: $(STAMP) ## The table again, and a page with plots and cases (report.html, report.md): RUN, and DATA_ROOT for pictures
	@: "$${RUN:?name the run: make report RUN=runs/.. (ls runs lists them)}"
	$(CLI) report "$$RUN" $${DATA_ROOT:+--data-root "$$DATA_ROOT"}

clean: ## Remove caches of build, lint and tests; leaves .venv, runs/ and data/
	rm -rf $(CACHES)
	find llm_wrapper tests -name __pycache__ -prune -exec rm -rf {} +
	@echo "Left: .venv (packages), runs/ (results), data/ (data sets, detections that cost hours). Remove those by hand."

cases: $(STAMP) ## Small inputs that people really have, each with what is right (LLM_WRAPPER_REAL_DATA=folder/data)
	$(BIN)/python benchmarks/cases.py $$ARGS

families: $(STAMP) ## Score tiny random models of 72 families against plain passes (ARGS="gpt-oss mamba": some of them)
	$(BIN)/python benchmarks/llm_families.py $$ARGS

fuzz: $(STAMP) ## Damaged and hostile files for every reader of other people's files (ARGS="--seconds 600 pickle image")
	$(BIN)/python benchmarks/fuzz_readers.py $$ARGS
