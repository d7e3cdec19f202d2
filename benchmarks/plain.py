"""What the benchmarks of speed share: a network and its prompts without a meaning, which a peer can be given too.

Every token is a unit of speech and none is ever heard: answers are as long as they may be, or end at `<|speech_end|>`.
Nothing of elocute is imported before it is needed: a peer's environment has none.
"""

import json
import resource
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from random import random
from statistics import median

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

RESULTS, PAGE = Path("benchmarks/results"), Path("docs/performance.md")
FOLDER = Path("starter/tts_lm")
TRL = ".venv-trl/bin/python"
"""The Python of TRL's environment, which `make trl` fills."""
END, NEVER = "<|speech_end|>", "<|pad|>"
"""What ends an answer, and what the starter's network never says."""
QWEN2 = {
    "0.5b": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                 num_key_value_heads=2, vocab_size=151_936, tie_word_embeddings=True),
    "7b": dict(hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
               num_key_value_heads=4, vocab_size=152_064, tie_word_embeddings=False),
}  # fmt: skip
SHAPES = ("starter", *QWEN2)
LORA = {"7b": 16}
"""Ranks of the adapters of shapes too large to be trained whole."""
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MIB = 2**20


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def network(shape: str, layers: int | None = None, dtype: torch.dtype = torch.float32):
    """The starter's, or a random one of a published shape; layers: only so many of them."""
    if shape == "starter":
        return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype).to(device())
    torch.manual_seed(0)
    with torch.device(device()):
        return Qwen2ForCausalLM._from_config(config_of(shape, layers), dtype=dtype)


def config_of(shape: str, layers: int | None = None):
    if shape == "starter":
        return AutoConfig.from_pretrained(FOLDER)
    config = Qwen2Config(**QWEN2[shape], max_position_embeddings=32_768, pad_token_id=0, use_sliding_window=False)
    config.num_hidden_layers = layers or config.num_hidden_layers
    return config


def tokenizer():
    """The starter's, whose end is what is never said, so that all answers are as long as they may be."""
    found = AutoTokenizer.from_pretrained(FOLDER)
    found.eos_token = found.pad_token = NEVER
    return found


def prompts(count: int) -> list[str]:
    """The first texts that the starter is to read aloud, with their labels and the token that begins speech."""
    template = "<|text|><|emotion:{emotion}|><|speed:{speed}|>{text}<|speech|>"
    with Path("starter/expressive/train.jsonl").open() as lines:
        rows = [json.loads(line) for _, line in zip(range(count), lines, strict=False)]
    return [template.format(text=row["messages"][0]["content"], **row["labels"]) for row in rows]


def reward(completions, **_) -> list[float]:
    """Random numbers: what an answer is worth costs nothing."""
    return [random() for _ in completions]


def speech_lm(shape: str, *, ends: bool = False, layers: int | None = None, dtype: torch.dtype = torch.float32):
    """The network as a speech LM of elocute. ends: answers may end before they are as long as allowed."""
    from elocute.data.types import Utterance
    from elocute.models import SpeechLM
    from elocute.models.layout import Layout

    class Plain(SpeechLM):
        def encode_prompt(self, example, audio=None):
            return torch.tensor(example.columns["ids"])

        def decode_all(self, answers):
            return [Utterance("", torch.zeros(1).numpy(), 16_000) for _ in answers]

    end = AutoTokenizer.from_pretrained(FOLDER).convert_tokens_to_ids(END) if ends else None
    net = network(shape, layers, dtype)
    # Units from 0 on; the end, if there is one, is asked for first.
    layout = Layout("speech-only", 0, net.config.vocab_size, text_end=None, answer_end=end, open_ended=True)
    return Plain(net, layout, None, {})


def versions_of(python: str) -> dict[str, str]:
    """TRL's version in its environment; SystemExit unless torch and transformers are those of this one."""
    script = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    names = ["trl", "torch", "transformers"]
    try:
        done = subprocess.run([python, "-c", script, *names], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(f"{python}: expected a Python that has TRL: make trl") from None
    found = dict(zip(names, done.stdout.split(), strict=True))
    here = {name: version(name) for name in names[1:]}
    if found | here != found:
        raise SystemExit(f"{python}: expected torch and transformers as here, {here}, it has {found}: make trl")
    return {"trl": found["trl"]}


@dataclass(frozen=True)
class Work:
    """What a step is: P prompts, G answers to each, so many new tokens, rows of one forward pass, threads."""

    shape: str
    layers: int | None
    prompts: int
    group: int
    new: int
    micro: int
    steps: int
    threads: int


def described(module: str, work: Work) -> dict:
    """Where, with what and at what work something is measured."""
    from benchmarks.tables import provenance

    result = provenance(module) | {"device": device(), "work": asdict(work)}
    where = torch.cuda.get_device_name() if device() == "cuda" else f"{work.threads} threads"
    result["machine"] += f", {where}"
    return result


def publish(result: dict, table: str, output: Path | None) -> None:
    """Write what was measured, and its table where the page has a place for it; only to `output` if that is given."""
    from benchmarks.tables import write_table

    name = result["command"].split()[2].removeprefix("benchmarks.")
    if (result["work"]["shape"], result["device"]) != ("starter", "cpu"):
        name += f"_{result['work']['shape']}_{result['device']}"
    (output or RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table)
    if not output and f"<!-- {name} -->" in PAGE.read_text():
        write_table(name, table, PAGE)


def forward_flops(config, tokens: int, context: float) -> float:
    """Of the layers, for so many tokens that each attend to `context` others in the mean; the head is left out."""
    width = config.hidden_size
    head = getattr(config, "head_dim", None) or width // config.num_attention_heads
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    weights = width * (2 * queries + 2 * keys) + 3 * width * config.intermediate_size
    return config.num_hidden_layers * tokens * (2 * weights + 4 * queries * context)


def head_flops(config, tokens: int) -> float:
    return 2 * config.hidden_size * config.vocab_size * tokens


def step_flops(config, prompt: float, work: Work) -> float:
    """Of one step, each prompt run once: sampling's forward pass, training's forward and backward passes.

    A frozen network's weights need no gradient. Prompts are `prompt` tokens long in the mean.
    """
    rows = work.prompts * work.group
    layers = forward_flops(config, work.prompts * prompt, prompt / 2)
    layers += forward_flops(config, rows * work.new, prompt + work.new / 2)
    head = head_flops(config, rows * work.new)
    return (layers + head) * (1 + (2 if work.shape in LORA else 3))


def matmul_peak(dtype: torch.dtype = torch.float32, seconds: float = 2.0) -> float:
    """FLOP/s of the fastest of a few square matrix products, each measured for some time."""
    best = 0.0
    for size in (4096, 8192, 16_384) if device() == "cuda" else (512, 1024, 2048):
        a, b = (torch.randn(size, size, device=device()).to(dtype) for _ in range(2))
        out = a @ b
        took = timed(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), seconds / 3)
        best = max(best, 2 * size**3 / median(took))
    return best


def timed(work: Callable[[], object], seconds: float, least: int = 3) -> list[float]:
    """Seconds of each of the runs that fit into so many seconds."""
    found: list[float] = []
    while len(found) < least or sum(found) < seconds:
        synchronise()
        start = time.perf_counter()
        work()
        synchronise()
        found.append(time.perf_counter() - start)
    return found


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def start_peak() -> None:
    """The peak of memory begins anew here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The most memory that the device's allocator gave out, or on a CPU that the process had, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
