# One command each; every one installs what it needs and is missing. `make demo` is the place to begin.

VENV := .venv
PYTHON := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH):/usr/sbin:/sbin
STORES ?= file,rados,s3
FS_STORES ?= file,rados
BACKUP_STORES ?= rados,file
BACKUP_SIZE ?= 10G
PYTEST_OPTIONS ?=
WORKERS ?= 2

.PHONY: demo test check format bench-nbd bench-fs bench-backup bench clean

demo: .make/demo-packages .make/blockyard
	examples/tour.sh

test: .make/demo-packages .make/test-packages .make/dev
	$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_OPTIONS)

check: .make/dev
	ruff format --check .
	ruff check .
	mypy
	lint-imports

format: .make/dev
	ruff format .
	ruff check --fix .

bench: bench-nbd bench-fs bench-backup

bench-nbd: .make/demo-packages .make/test-packages .make/dev
	$(PYTHON) -m bench nbd --store $(STORES) --json bench/results/nbd.json

bench-fs: .make/demo-packages .make/test-packages .make/dev
	$(PYTHON) -m bench fs --store $(FS_STORES) --json bench/results/fs.json
	$(PYTHON) -m bench fs-scale --json bench/results/fs-scale.json

bench-backup: .make/demo-packages .make/test-packages .make/bench-packages .make/dev
	$(PYTHON) -m bench backup --store $(BACKUP_STORES) --size $(BACKUP_SIZE) --json bench/results/backup.json

clean:
	rm -rf .make $(VENV) build *.egg-info

# Stamps: each says that a thing is installed as the files it depends on ask for.

.make/%-packages: .ci/packages-%.txt .ci/install-packages
	@mkdir -p $(@D)
	.ci/install-packages $<
	@touch $@

# Debian's own Python, whose ABI nbdkit embeds, and its packages (python3-rados, python3-libnbd) in sight.
$(VENV)/bin/pip: | .make/demo-packages
	/usr/bin/python3 -m venv --system-site-packages $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade 'pip>=25.1'

.make/blockyard: pyproject.toml | $(VENV)/bin/pip
	@mkdir -p $(@D)
	$(PYTHON) -m pip install --quiet --editable .
	@touch $@

.make/dev: .make/blockyard
	$(PYTHON) -m pip install --quiet --group dev
	@touch $@
