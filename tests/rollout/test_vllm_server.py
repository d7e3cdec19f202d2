"""vLLM itself: its answers are the policy's, it has the weights of each step, and a run survives its death.

The server runs in an environment of its own, which `make vllm` builds; VLLM_PYTHON names the Python of another.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from elocute.errors import RunError
from elocute.models import load_model
from elocute.recipe import load_recipe
from elocute.recipe.rollout import Vllm
from elocute.rollout import Sampling
from elocute.rollout.vllm import VllmSampler, score
from elocute.training.trainer import Trainer

PYTHON = Path(os.environ.get("VLLM_PYTHON", ".venv-vllm/bin/python"))
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is missing: make vllm")

START_SECONDS = 900
SETTINGS = {
    "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
}  # fmt: skip
FLAGS = (
    "--enable-scale-out --logprobs-mode processed_logprobs --generation-config vllm --skip-tokenizer-init "
    "--enforce-eager --dtype float32 --max-model-len 512 --max-num-seqs 16 --host 127.0.0.1"
)


class Server:
    """vLLM on a port of its own, in a session of its own."""

    def __init__(self, model: Path, log: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model, self.log, self.url = model, log, f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        words += ["--port", str(self.port), *FLAGS.split()]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | SETTINGS
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + START_SECONDS
        while not self.healthy():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(1)

    def healthy(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.url}/health", timeout=5).status == 200
        except OSError:
            return False

    def post(self, path: str, body: dict) -> None:
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(self.url + path, data, kind), timeout=60).close()

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The starter model as a Qwen2: its Llama, with small biases."""
    folder = tmp_path_factory.mktemp("qwen2") / "model"
    shutil.copytree("starter/model", folder)
    settings = json.loads((folder / "elocute.json").read_text())
    codec = Path("starter/model", settings["codec"]).resolve()
    (folder / "elocute.json").write_text(json.dumps(settings | {"codec": str(codec)}))
    llama = load_model("starter/model").model
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "max_position_embeddings rms_norm_eps rope_parameters tie_word_embeddings head_dim"
    )
    torch.manual_seed(0)
    qwen = Qwen2ForCausalLM(Qwen2Config(**{name: getattr(llama.config, name) for name in names.split()}))
    found = qwen.load_state_dict(llama.state_dict(), strict=False)
    assert not found.unexpected_keys and all(name.endswith("bias") for name in found.missing_keys)
    with torch.no_grad():
        for name, parameter in qwen.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.02)
    (folder / "model.safetensors").unlink()
    qwen.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    server = Server(folder, folder.with_name("server.log"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def lm(folder):
    return load_model(folder)


def flat(groups):
    return [rollout for group in groups for rollout in group]


def prompts(lm) -> list[torch.Tensor]:
    """Long ones: the server keeps the keys and values of whole blocks of a prompt."""
    begin = lm.layout.first_unit
    return [torch.arange(begin, begin + 200), torch.arange(begin + 300, begin + 470)]


SEEDS = [[1, 2, 3], [2**63 - 1, 5, 6]]


def sampler_of(server, folder, own=None, **settings) -> VllmSampler:
    sampler = VllmSampler(Vllm(url=server.url, **{"timeout": 300.0} | settings), folder, own)
    sampler.stay(folder, "base")
    return sampler


@pytest.mark.parametrize("sampling", [Sampling(40), Sampling(40, 0.7), Sampling(40, 1.2, 20, 0.9)])
def test_its_answers_are_the_models_own(server, folder, lm, sampling):
    sampler = sampler_of(server, folder)
    rollouts = flat(sampler(lm, prompts(lm), SEEDS, sampling))
    assert max(len(rollout.tokens) for rollout in rollouts) > 10
    assert any(not rollout.tokens.action.all() for rollout in rollouts)
    for rollout, (logp, _) in zip(rollouts, score(lm, rollouts, sampling), strict=True):
        assert torch.allclose(rollout.logprob, logp, atol=1e-3)
    assert sampler.drift[0] / sampler.drift[1] < 1e-4
    again = flat(sampler(lm, prompts(lm), SEEDS, sampling))
    assert all(one.tokens.ids.equal(two.tokens.ids) for one, two in zip(rollouts, again, strict=True))


def test_it_draws_as_the_model_says(server, folder, lm):
    """The first token of 600 answers, by its share."""
    sampler = sampler_of(server, folder)
    rollouts = flat(sampler(lm, prompts(lm)[:1], [list(range(600))], Sampling(1, 1.3)))
    logp = {int(rollout.tokens.ids[0]): float(rollout.logprob[0]) for rollout in rollouts}
    drawn = torch.tensor([int(rollout.tokens.ids[0]) for rollout in rollouts])
    for token, value in logp.items():
        share = torch.tensor(value).exp()
        spread = (share * (1 - share) / len(drawn)).sqrt()
        assert abs((drawn == token).float().mean() - share) < 5 * spread + 1 / len(drawn)


def test_it_follows_the_weights_and_forgets_the_old_ones(server, folder, lm, tmp_path):
    sampler = sampler_of(server, folder, tmp_path / "weights", max_drift=1e-3)
    sampler(lm, prompts(lm), SEEDS, Sampling(20))  # its keys and values are kept
    with torch.no_grad():
        torch.manual_seed(5)
        for name, parameter in lm.model.named_parameters():
            if "embed_tokens" not in name:  # tied: on a CPU the head keeps its packed copy of them (docs/vllm.md)
                parameter += 0.02 * torch.randn(parameter.shape)
    with pytest.raises(RunError, match="nats a token from the model's own"):
        sampler(lm, prompts(lm), SEEDS, Sampling(20))
    sampler.follow(lm, 1)
    sampler(lm, prompts(lm), SEEDS, Sampling(20))
    assert sampler.drift[0] / sampler.drift[1] < 1e-4


def test_stale_weights_are_said_by_name(server, folder, lm):
    sampler = sampler_of(server, folder)
    server.post("/update_weight_version", {"new_version": "of another run"})
    with pytest.raises(RunError, match="stale weights: of another run answered, not base"):
        sampler(lm, prompts(lm), SEEDS, Sampling(4))


def test_a_run_that_lost_its_server_goes_on_where_it_was(server, folder, tmp_path):
    """LoRA, a full step's objective; the server is killed behind the second step, then started anew as it was."""
    recipe = load_recipe(
        "recipes/starter/wavalign.yaml",
        [
            f"model={folder}", f"run_dir={tmp_path / 'run'}", "data.eval=null", "steps=4", "report=false",
            "rollout.group_size=3", "rollout.prompts_per_step=2", "rollout.max_new_tokens=40", "checkpoint.every=1",
            "optim.warmup_steps=0", "optim.schedule=constant", "optim.lr=1e-2", "lora.rank=8",
            f"rollout.vllm.url={server.url}", "rollout.vllm.timeout=300", "rollout.vllm.max_drift=1e-3",
        ],
    )  # fmt: skip

    def die(step, _values):
        if step == 2:
            server.kill()
            trainer.served.server.timeout = 3.0

    trainer = Trainer(recipe)
    with pytest.raises(RunError, match="the vLLM server is gone .* was not back within 3 s"):
        trainer.train(progress=die)
    assert (tmp_path / "run/checkpoints/step-2/state.json").exists()
    server.start()
    resumed = Trainer(recipe, resume=True)
    assert resumed.step == 2
    resumed.train()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["sampler/drift"] < 1e-4 for line in lines)
