# Two commands set everything up on a bare Debian or Ubuntu: `make demo` and `make test`.
# Both can be run again at little cost, and offline once installed: an install is repeated only after pyproject.toml
# changed. PYTHON=python3.12 chooses an interpreter.

.PHONY: help demo test
.DEFAULT_GOAL := help

help:
	@echo "make demo   set up .venv and pre-train a small CROMA on real satellite tiles (about 3 minutes after set-up)"
	@echo "make test   set up .venv with all extras and run the tests"

demo: .venv/.installed-remote-sensing
	.venv/bin/maskwright demo

test: .venv/.installed-all,dev
	.venv/bin/python -m pytest

.venv/.installed-%: pyproject.toml .ci/setup
	sh .ci/setup "$*"
	@touch "$@"
