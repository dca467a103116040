# make setup  create the environment
# make demo   set up, fine-tune, inpaint, score, report
# make test   set up, run the tests
# Uses the active conda environment, or else .venv.

ifneq ($(filter-out base,$(CONDA_DEFAULT_ENV)),)
ENV := $(CONDA_PREFIX)
else
ENV := .venv
endif
PYTHON := $(ENV)/bin/python
FOUND_PYTHON ?= python3
LOWEST := .venv-lowest

RUN := runs/demo
DATA := data/demo
CONFIG := config/demo.yml
WEIGHTS := models/pretrained/cats64
START_TOKENIZER := --tokenizer $(WEIGHTS)/vqgan.safetensors  # empty: train from scratch
START_TRANSFORMER := --transformer $(WEIGHTS)/transformer.safetensors
SPLIT := --split 400 100 100
SCHEDULES := cosine linear square
SCORE := $(PYTHON) faster-pytorch-fid/fid_score_gpu.py --features efficientnet-lite0 --metrics fid,paired

SEARCH_RUN := runs/search-cats64
SEARCH_DATA := data/cats64
SEARCH_FLAGS :=  # e.g. --set search.steps=480

.PHONY: setup demo duration results search-results test test-lowest gpu test-long test-app faults coverage lint format schema clean
.SECONDARY:

setup: $(ENV)/.maskgit

demo: duration $(RUN)/report.html
	@echo "look at $(RUN)/report.html"

duration:
	@test -e $(RUN)/report.html || echo "takes about five minutes on two quiet CPU cores, longer next to other processes"

$(RUN)/report.html: $(foreach s,masked_input $(SCHEDULES),$(RUN)/$(s)/score.json) utils/report.py utils/templates/report.html
	$(PYTHON) -m utils.report --config $(CONFIG)

$(RUN)/masked_input/score.json: $(DATA)/dataset.json | $(RUN)/transformer/done
	@mkdir -p $(@D)
	$(SCORE) --predicted-path $(DATA)/masked_image --gt-path $(DATA)/test --mask-path $(DATA)/mask64 --json $@

$(RUN)/%/score.json: $(RUN)/%/test_results/manifest.json
	$(SCORE) --predicted-path $(RUN)/$*/test_results --json $@

$(RUN)/%/test_results/manifest.json: $(RUN)/transformer/done
	$(PYTHON) inpainting.py --config $(CONFIG) --mask-func $* --output $(RUN)/$*

$(RUN)/transformer/done: $(RUN)/tokenizer/done
	$(PYTHON) training_transformer.py --config $(CONFIG) --resume auto $(START_TRANSFORMER)
	@touch $@

$(RUN)/tokenizer/done: $(DATA)/dataset.json
	$(PYTHON) training_vqgan.py --config $(CONFIG) --resume auto $(START_TOKENIZER)
	@touch $@

$(DATA)/dataset.json: | $(ENV)/.maskgit
	$(PYTHON) prepare_data.py photos --out $(DATA) $(SPLIT)

results: demo
	for s in masked_input $(SCHEDULES); do cp $(RUN)/$$s/score.json docs/results/demo/$$s.json; done
	cp $(RUN)/comparison.png docs/results/demo/comparison.png
	$(PYTHON) -m docs.tables

# Reproduces docs/results/search: make search-results SEARCH_DATA=folder [SEARCH_FLAGS=...]
search-results: $(ENV)/.maskgit
	$(PYTHON) training_transformer.py --config config/cats64.yml --lr-search 10 --lr-search-only \
	  --tokenizer $(WEIGHTS)/vqgan.safetensors \
	  --data $(SEARCH_DATA) --run $(SEARCH_RUN) $(SEARCH_FLAGS)
	mkdir -p docs/results/search
	cd $(SEARCH_RUN)/search && cp search.md search.json learning_rate.png history.png \
	  $(CURDIR)/docs/results/search/

test: $(ENV)/.maskgit-dev
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder -m "not long and not app"

test-lowest:  # lowest versions that pyproject.toml allows, except PyTorch; Python up to 3.12
	$(FOUND_PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python tests/lowest_versions.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --quiet --constraint $(LOWEST)/constraints.txt ".[dev,app]"
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder -m "not long and not app"

test-long: $(ENV)/.maskgit-dev  # writes docs/results/test-long.txt
	$(PYTHON) -m pytest -m long -rA --show-capture=no > docs/results/test-long.txt; \
	  status=$$?; cat docs/results/test-long.txt; exit $$status

test-app: $(ENV)/.maskgit-app  # uses an installed Chromium, or downloads one
	$(PYTHON) -m pytest -rs tests/app

faults: $(ENV)/.maskgit-dev  # writes docs/faults.md, how bad inputs are handled
	$(PYTHON) -m pip install --quiet ".[app]"
	FAULTS_TABLE=1 $(PYTHON) -m pytest tests/faults

coverage: $(ENV)/.maskgit-dev  # including scripts run as subprocesses; fails below 90 % of branches
	$(PYTHON) -m coverage erase
	$(PYTHON) -m coverage run -m pytest -m "not long and not app"
	$(PYTHON) -m coverage combine
	$(PYTHON) -m coverage report
	$(PYTHON) tests/branch_coverage.py

lint: $(ENV)/.maskgit-dev
	$(ENV)/bin/ruff check .
	$(ENV)/bin/ruff format --check .

format: $(ENV)/.maskgit-dev
	$(ENV)/bin/ruff check --fix .
	$(ENV)/bin/ruff format .

schema: $(ENV)/.maskgit
	$(PYTHON) -m config.loading
	$(PYTHON) -m config.reference

clean:
	rm -rf $(RUN) $(DATA)

$(ENV)/bin/python:
	$(FOUND_PYTHON) -m venv $(ENV)

$(ENV)/.maskgit: pyproject.toml | $(ENV)/bin/python
	$(PYTHON) -m pip install --quiet .
	@touch $@

$(ENV)/.maskgit-dev: pyproject.toml | $(ENV)/bin/python
	$(PYTHON) -m pip install --quiet ".[dev]"
	@touch $@ $(ENV)/.maskgit

$(ENV)/.maskgit-app: $(ENV)/.maskgit-dev
	$(PYTHON) -m pip install --quiet ".[app,test-app]"
	@command -v chromium google-chrome chrome >/dev/null || $(PYTHON) -m playwright install chromium || true
	@touch $@

gpu: $(ENV)/.maskgit-dev  # tests and benchmarks on a GPU; docs/gpu.md
	$(PYTHON) -m bench.gpu
