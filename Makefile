# A thin face on CMake and the scripts.  `make demo` first, `make test` second.
BUILD ?= build
JOBS ?= $(shell nproc)

.PHONY: all cuda deps demo test test-vllm vllm-demo install clean help

all: deps ## install what is missing, then build the library, the engine and `relay` into build/
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release
	cmake --build $(BUILD) -j $(JOBS)

cuda: all ## the same and librelayattn_cuda beside it, for NVIDIA GPUs (needs nvcc)
	CUDACXX=$${CUDACXX:-$$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)} cmake -S . -B $(BUILD) -DRELAY_CUDA=ON
	cmake --build $(BUILD) -j $(JOBS)

deps: ## install the Debian packages that are missing
	@scripts/install-deps

demo: all ## answer 64 requests over one handbook of 4,000 tokens, with the relay and without
	@scripts/demo $(BUILD)/relay

test: all ## run everything (20 to 30 minutes on two cores)
	@scripts/install-deps --test
	@scripts/test $(BUILD)

test-vllm: all ## every test of the vLLM plugin, the long ones too
	@scripts/setup-vllm
	RELAY_BIN=$(abspath $(BUILD)/relay) RELAY_LIBRARY=$(abspath $(BUILD)/src/librelayattn.so) \
	  .venv-vllm/bin/python -m pytest -q -rs -p no:cacheprovider --long tests/vllm

vllm-demo: ## the same by vLLM 0.9.1 with the plugin: its OpenAI server, 64 requests at once
	@scripts/setup-vllm --plugin
	@.venv-vllm/bin/python scripts/vllm_demo.py

install: all ## install headers, libraries, pkg-config file, CMake package and `relay` (PREFIX=/usr/local)
	cmake --install $(BUILD) --prefix $(or $(PREFIX),/usr/local)

clean: ## remove what was built
	rm -rf $(BUILD) build-asan build-tsan build-cuda demo

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12
