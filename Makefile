# On a Debian machine, as root:  make demo  and  make test  need nothing before them.
# Every path is relative, so that a checkout may lie anywhere; programs of .venv are run as modules, because the first
# line of an installed script cannot hold a path with a space.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
# Else each process of pytest would compile all tests again.
unexport PYTHONDONTWRITEBYTECODE

PYTHON := .venv/bin/python

# Debian packages: to build, to run the daemon and follow the quick start, to run the laboratory of the demo on top of
# that, and to run the tests.
BUILD_PACKAGES := python3 python3-dev python3-venv build-essential ca-certificates
RUN_PACKAGES := iproute2 iputils-ping nftables util-linux wireguard-go wireguard-tools bind9-dnsutils
DEMO_PACKAGES := $(BUILD_PACKAGES) $(RUN_PACKAGES) tcpdump
BENCH_PACKAGES := $(DEMO_PACKAGES) dnsmasq-base dnsperf unbound containernetworking-plugins netavark aardvark-dns coturn \
  iperf3
CLUSTER_PACKAGES := $(DEMO_PACKAGES) etcd-server etcd-client
CNI_PACKAGES := $(DEMO_PACKAGES) containernetworking-plugins busybox-static iptables
TEST_PACKAGES := $(CLUSTER_PACKAGES) $(CNI_PACKAGES) dnsperf iperf3 strace systemd crun coturn dnsmasq-base \
  procps e2fsprogs conntrack openssl musl-tools unbound-host bind9-utils
IMAGE_PACKAGES := buildah debootstrap

SOURCES := setup.py $(wildcard overlayd/*/*.pyx overlayd/*/*.pxd overlayd/cni/*.c)

# $(call install,PACKAGES): install the missing ones, and ask the network only if there are any.
define install
missing=(); \
for package in $(1); do \
  [[ "$$(dpkg-query -W -f='$${db:Status-Status}' "$$package" 2>/dev/null || true)" == installed ]] || missing+=("$$package"); \
done; \
if (($${#missing[@]})); then \
  echo "installing: $${missing[*]}"; \
  export DEBIAN_FRONTEND=noninteractive; \
  apt-get update -q && apt-get install -q -y --no-install-recommends "$${missing[@]}"; \
fi
endef

.PHONY: help
help: ## show this list
	@echo 'overlayd: the per-node daemon that owns a container cluster'"'"'s encrypted overlay network'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

.PHONY: demo
demo: demo-packages build ## two nodes, two containers, one encrypted overlay, in namespaces of this machine (root)
	@PYTHONPATH=tests $(PYTHON) -m lab.demo

.PHONY: demo-cni
demo-cni: cni-packages build ## two nodes with containerd on each, whose containers are on the overlay by CNI (root)
	@PYTHONPATH=tests $(PYTHON) -m lab.demo_cni

.PHONY: demo-cluster
demo-cluster: cluster-packages build ## three members of etcd, five nodes that find each other by it, no orchestrator (root)
	@PYTHONPATH=tests $(PYTHON) -m lab.demo_cluster

# What is unpacked for the tests, is unpacked beside the build, once nothing is left for apt to lock.
# Six processes, for tests wait half of their time: each test makes its own namespaces.  A file is one process's, since
# its tests share what it set up; tests/conftest.py has their order.  Lint is done beside them, and told of at the end.
# The first collection compiles the tests for all processes.
.PHONY: test
test: test-installed ## lint, types and every test (root)
	@$(MAKE) --no-print-directory -j 2 test-packages build
	@mkdir -p build && { $(MAKE) --no-print-directory lint > build/lint.log 2>&1 & lint=$$!; } && tested=0 linted=0 && \
	  { $(PYTHON) -m pytest --collect-only -qq > /dev/null || true; } && \
	  { $(PYTHON) -m pytest -rs -n 6 --dist loadfile --no-loadscope-reorder || tested=$$?; } && \
	  { wait $$lint || linted=$$?; } && cat build/lint.log && exit $$((tested || linted))

# The tests of the half without I/O: no root, no network, nothing installed but .venv.
PURE := tests/model tests/proto tests/fast tests/fuzz/test_envelope_fuzz.py tests/fuzz/test_cni_fuzz.py $(wildcard tests/test_*.py)

.PHONY: test-pure
test-pure: build ## the tests of the half without I/O (no root; seconds)
	@$(PYTHON) -m pytest $(PURE)

.PHONY: test-debian
test-debian: root ## demo and test in a fresh root of SUITE, such as SUITE=bookworm (default: trixie; root, git)
	@$(call install,debootstrap git)
	@tests/debian/run-in-debian $(or $(SUITE),trixie) demo test

.PHONY: quick-start
quick-start: run-packages build ## the README's quick start, pasted into the terminals of two nodes (root)
	@$(PYTHON) -m pytest tests/e2e/test_quick_start.py

.PHONY: stranger
stranger: root ## the same in a fresh Debian, with the time that it took (root, git)
	@$(call install,debootstrap git)
	@time tests/debian/run-in-debian $(or $(SUITE),trixie) quick-start

# A copy whose extension modules tell which of their lines run.  Tracing allocates objects where the module does not, so
# the garbage collector may run in the middle of a listing, which one test has it do at its end.
COVERAGE := build/coverage
REPORT = ../../$(PYTHON) -m coverage report

.PHONY: coverage
coverage: build ## what the tests of the half without I/O run of it, Cython too; fails below 100 %, 97 % of model
	@rm -rf $(COVERAGE) && mkdir -p $(COVERAGE)
	@tar -c --exclude=./{build,.venv,.git,.cache} . | tar -x -C $(COVERAGE)
	@cd $(COVERAGE) && rm -f overlayd/*/*.so overlayd/_fast/*.c overlayd/linux/*.c && sed -i '1i # cython: linetrace=True' overlayd/*/*.pyx
	@cd $(COVERAGE) && CFLAGS='-O1 -DCYTHON_TRACE_NOGIL=1' ../../$(PYTHON) -W ignore setup.py --quiet build_ext
	@cd $(COVERAGE) && ../../$(PYTHON) -m coverage run -m pytest $(PURE) -k 'not when_the_list_is_made'
	@cd $(COVERAGE) && $(REPORT) --fail-under=97 --include='overlayd/model/*'
	@cd $(COVERAGE) && $(REPORT) --fail-under=100 --include='overlayd/_fast/*,overlayd/proto/*,overlayd/wire/*'

.PHONY: test-kernel
test-kernel: test-packages build ## the tests of the kernel's WireGuard, in an emulated machine (root; two minutes)
	@tests/kernel/run-guest $(PYTHON)

.PHONY: test-image
test-image: test-packages build ## the Dockerfile built and run, without a container engine (root; two minutes)
	@$(call install,$(IMAGE_PACKAGES))
	@$(PYTHON) -m pytest tests/image

# The tests of what serves a device: how it is driven, adopted, healed, found to hang, and renewed.
WIREGUARD_GO := .cache/wireguard-go
DEVICE_TESTS := tests/linux/wireguard $(addprefix tests/e2e/test_,adopt.py data_path.py drift.py hang.py renewal.py \
  restart_keeps_data_plane.py)

.PHONY: test-wireguard-go
test-wireguard-go: test-packages build ## the tests of devices with Debian 12's, Debian 13's and the current wireguard-go (root)
	@tests/wireguard-go/get-versions $(WIREGUARD_GO) | while read -r version; do \
	  echo "== $$version: $$($(WIREGUARD_GO)/$$version/wireguard-go --version | head -n 1)"; \
	  unshare --mount -- sh -c 'mount --bind "$$0" "$$(command -v wireguard-go)" && exec "$$@"' \
	    $(WIREGUARD_GO)/$$version/wireguard-go $(PYTHON) -m pytest -n 4 --dist loadfile $(DEVICE_TESTS) < /dev/null; \
	done

.PHONY: test-web
test-web: test-packages build ## the page of overlayctl web in a headless Chromium (root; 100 MB once, then seconds)
	@$(call install,fonts-dejavu-core)
	@$(call unpack_all,chromium-headless-shell,chromium)
	@$(PYTHON) -m pytest tests/web

.PHONY: deb
deb: build ## dist/overlayd_VERSION_ARCH.deb, of the checkout and the tested versions of what it needs
	@$(PYTHON) deploy/deb/build

.PHONY: soak
soak: test-packages build ## a ruleset flushed, and a daemon restarted, again and again under traffic (root; two minutes)
	@OVERLAYD_SOAK=1 $(PYTHON) -m pytest -s tests/e2e/test_soak.py

.PHONY: nat-matrix
nat-matrix: test-packages build ## every kind of NAT against every other, and lost paths, with times (root; ten minutes)
	@OVERLAYD_NAT_MATRIX=1 $(PYTHON) -m pytest -s tests/e2e/test_nat_matrix.py tests/e2e/test_port_mapping.py

.PHONY: resolvers
resolvers: test-packages build ## C libraries, Go, unbound and systemd-resolved in containers, before bad upstreams (root; minutes)
	@OVERLAYD_LOOKUPS=5 $(PYTHON) -m pytest -rs tests/e2e/test_resolvers.py

.PHONY: cluster-sim
cluster-sim: build ## 200 simulated nodes of a cluster on 2,000 faults, and 300 bad days of small ones (minutes)
	@PYTHONPATH=tests $(PYTHON) -m sim.world --long 200 2000
	@PYTHONPATH=tests $(PYTHON) -m sim.world 0 300

.PHONY: cluster-outage
cluster-outage: test-packages build ## etcd away for five minutes under ping, attaches and restarts (root; six minutes)
	@OVERLAYD_OUTAGE=300 $(PYTHON) -m pytest -s tests/e2e/test_cluster_outage.py

.PHONY: crash
crash: test-packages build ## every op killed, and refused an operation, at every point; random sequences (root)
	@PYTHONPATH=tests $(PYTHON) -m crash
	@PYTHONPATH=tests $(PYTHON) -m crash.cluster
	@PYTHONPATH=tests $(PYTHON) -m crash.shim

.PHONY: cni-cycles
cni-cycles: test-packages build ## 10,000 containers by CNI, shims, daemon and namespaces killed at random (root; ten minutes)
	@OVERLAYD_CNI_CYCLES=10000 $(PYTHON) -m pytest --timeout 3600 tests/e2e/test_cni_cycles.py

# What talks CNI and CRI to a runtime by hand.  make test has it where Go is; elsewhere its tests are skipped.
.PHONY: cni-tools
cni-tools: ## cnitool and crictl, by Go's module proxy, for the tests of container runtimes
	@mkdir -p build/clients/go/crictl.d && export GOBIN="$$PWD/build/clients/go" && \
	  go install github.com/containernetworking/cni/cnitool@v1.2.3 && cd build/clients/go/crictl.d && \
	  { [[ -e go.mod ]] || go mod init overlayd.test/crictl; } && go get sigs.k8s.io/cri-tools/cmd/crictl@v1.34.0 && \
	  go build -o .. sigs.k8s.io/cri-tools/cmd/crictl

# A newer etcd than Debian's.  make test has it where Go is; elsewhere its test is skipped.
.PHONY: etcd-new
etcd-new: ## etcd 3.6, by Go's module proxy, for a test of clusters
	-@mkdir -p build/clients/go/etcd.d && cd build/clients/go/etcd.d && \
	  { [[ -e go.mod ]] || go mod init overlayd.test/etcd; } && go get go.etcd.io/etcd/server/v3@v3.6.5 && \
	  CGO_ENABLED=0 go build -o ../etcd go.etcd.io/etcd/server/v3

.PHONY: hostile
hostile: test-packages build ## damaged frames, envelopes and DNS, floods, few descriptors, kills under load (root; minutes)
	@OVERLAYD_HOSTILE=50 OVERLAYD_HOSTILE_SECONDS=180 $(PYTHON) -m pytest -s tests/fuzz tests/e2e/test_descriptors.py

.PHONY: lint
lint: build ## ruff, mypy --strict, and the stubs of the extension modules against these
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy
	@PYTHONPATH=. $(PYTHON) -m mypy.stubtest --concise --allowlist tests/stubtest-allowed overlayd._fast overlayd.linux.asking overlayd.linux.datagrams overlayd.linux.syscalls

.PHONY: bench
bench: bench-packages .venv/benched ## the benchmarks of bench/, one after the other
	@for script in bench/bench_*.py bench/hot_paths.py; do echo "== $$script"; $(PYTHON) "$$script"; done

.PHONY: bench-record
bench-record: build ## keep the times of the hot paths as they are now
	@$(PYTHON) bench/hot_paths.py --benchmark-autosave

.PHONY: bench-compare
bench-compare: build ## time the hot paths beside the newest record; fails when one takes a third longer
	@$(PYTHON) bench/hot_paths.py --benchmark-compare --benchmark-compare-fail=median:33%

BASE ?= origin/main

.PHONY: bench-check
bench-check: bench-packages build ## is this checkout slower than BASE (default: origin/main), or over a budget? (root; five minutes)
	@PYTHONPATH=bench:tests $(PYTHON) -m check $(BASE)

.PHONY: bench-proof
bench-proof: bench-packages build ## bench-check finds a planted delay, and nothing in ten comparisons of this checkout with itself (root)
	@PYTHONPATH=bench:tests:. $(PYTHON) -m check.proof

# RELEASE=NAME also keeps the ratios in bench/history.json.
.PHONY: bench-report
bench-report: bench-packages .venv/benched ## docs/performance.md and its plots, measured now (root; ten minutes)
	@PYTHONPATH=bench:tests:. $(PYTHON) -m report $(if $(RELEASE),--release $(RELEASE))

.PHONY: bench-profile
bench-profile: bench-packages build ## docs/profile.md: where the daemon's processor time goes, by perf (root; a minute)
	@$(call install,linux-perf)
	@PYTHONPATH=bench:tests:. $(PYTHON) bench/bench_profile.py

.PHONY: build
build: .venv/built ## virtual environment in .venv, extension modules and bytecode compiled in place
	@$(PYTHON) -m compileall -q overlayd tests

.PHONY: clean
clean: ## remove everything that was built, the virtual environment too
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f overlayd/_fast/*.so overlayd/_fast/*.c overlayd/linux/*.so overlayd/linux/*.c overlayd/cni/overlayd-cni
	find overlayd tests bench -name __pycache__ -type d -exec rm -rf {} +

.PHONY: root
root:
	@if ((EUID)); then echo 'make: this target makes network namespaces and must run as root' >&2; exit 1; fi

# Debian starts a service with its package; ours are started by the laboratory alone.
define stop_service
if [[ " $${missing[*]} " == *" $(1) "* ]]; then \
  echo '$(2): the tests run their own, so the one that the package has just started is stopped and stays off'; \
  service $(2) stop || true; update-rc.d $(2) disable; \
fi
endef

# The package of promtool: from Debian 13 on one of its own.
PROMTOOL := $$(apt-cache show promtool > /dev/null 2>&1 && echo promtool || echo prometheus)

# $(call unpack,PACKAGE,DIRECTORY): below build/clients, where tests find it.  Installed, miniupnpd would serve the host's
# network, systemd-resolved make itself the host's resolver, NetworkManager take its links, and Prometheus start.
define unpack
if [[ ! -e build/clients/$(2)/usr ]]; then \
  mkdir -p build/clients/$(2) && cd build/clients/$(2) && echo "unpacking: $(1)"; \
  { apt-get download -q $(1) || { apt-get update -q && apt-get download -q $(1); }; } && dpkg -x $(1)_*.deb .; \
fi
endef

# $(call unpack_all,PACKAGES,DIRECTORY): the same, with whatever of that which they need is not installed.
define unpack_all
if [[ ! -e build/clients/$(2)/usr ]]; then \
  mkdir -p build/clients/$(2)/partial && echo 'unpacking: $(1), and what they need' && \
  get=(apt-get install -q -y --no-install-recommends --download-only -o "Dir::Cache::archives=$$PWD/build/clients/$(2)") && \
  { "$${get[@]}" $(1) || { apt-get update -q && "$${get[@]}" $(1); }; } && \
  for package in build/clients/$(2)/*.deb; do dpkg -x "$$package" build/clients/$(2); done; \
fi
endef

# Container runtimes, with what they need: installed, they would start on the host.
define unpack_runtimes
$(call unpack_all,containerd runc,containerd); $(call unpack_all,podman conmon runc,podman)
endef

.PHONY: build-packages run-packages demo-packages bench-packages cluster-packages cni-packages test-installed test-packages
build-packages:
	@if ((EUID == 0)) && command -v apt-get > /dev/null; then $(call install,$(BUILD_PACKAGES)); fi
run-packages: root
	@$(call install,$(RUN_PACKAGES))
demo-packages: root
	@$(call install,$(DEMO_PACKAGES))
bench-packages: root
	@$(call install,$(BENCH_PACKAGES)); $(call stop_service,coturn,coturn); $(call stop_service,unbound,unbound)
test-installed: root
	@$(call install,$(TEST_PACKAGES)); $(call stop_service,coturn,coturn); $(call stop_service,etcd-server,etcd)
test-packages: test-installed
	@$(call unpack,miniupnpd-nftables,miniupnpd)
	@$(call unpack,systemd-resolved,resolved)
	@$(call unpack,$(PROMTOOL),prometheus)
	@$(unpack_runtimes)
	@$(call unpack_all,network-manager dbus-daemon,networkmanager)
	@if command -v go > /dev/null && [[ ! -e build/clients/go/crictl ]]; then \
	  $(MAKE) cni-tools || echo 'cnitool and crictl are not to be had: their tests are skipped'; \
	fi
	@if command -v go > /dev/null && [[ ! -e build/clients/go/etcd ]]; then $(MAKE) etcd-new; fi
cni-packages: root
	@$(call install,$(CNI_PACKAGES))
	@$(unpack_runtimes)
cluster-packages: root
	@$(call install,$(CLUSTER_PACKAGES)); $(call stop_service,etcd-server,etcd)

# Debian's own Python, which is built with profile-guided optimisation and takes a quarter less processor time than one
# that was not; else the first in PATH.  It has to be new enough, and able to make virtual environments and extensions.
USABLE := import os, sys, sysconfig, venv, ensurepip; \
  sys.exit(sys.version_info < (3, 11) or not os.path.exists(sysconfig.get_path("include") + "/Python.h"))
.venv/created: | build-packages
	@for python in /usr/bin/python3 python3; do \
	  if "$$python" -c '$(USABLE)' 2> /dev/null; then break; fi; \
	done; \
	echo "virtual environment: .venv, by $$("$$python" --version)"; \
	"$$python" -m venv --clear .venv
	@touch $@

.venv/installed: .venv/created pyproject.toml constraints.txt
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools cython
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@

# For the plots, and tables that only the benchmarks look things up in.
.venv/benched: .venv/built
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev,bench]'
	@touch $@

# What was installed just now was compiled by that.
.venv/built: .venv/installed setup.cfg $(SOURCES)
	@if [[ -n $$(find setup.cfg $(SOURCES) -newer .venv/installed) ]]; then \
	  $(PYTHON) -W ignore setup.py --quiet build_ext; \
	fi
	@touch $@
