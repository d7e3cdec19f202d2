"""The voice of Qwen2.5-Omni: codes, 50 a second, to sound at 24 kHz, by a diffusion transformer and BigVGAN.

Published without an encoder: nobody but the talker makes codes. Both parts are transformers'; they run in float32.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavModel

from elocute.data.shards import Shards, check_fit, without_weights
from elocute.errors import InputError
from elocute.speech.qwen_omni.config import open_folder, read_part, shapes_of
from elocute.speech.units import BrokenUnits, as_units

PREFIX = "token2wav."
SPEAKERS = "spk_dict.pt"
SPEAKER = "Chelsie"
"""Who speaks where nobody says, as in transformers."""
SAMPLE_RATE = 24000
_NOISE_SEED = 0
_ALGORITHM = "elocute-qwen-omni-codes-1"


@dataclass(frozen=True)
class Speaker:
    """bos: the text token that begins this speaker's speech; cond float32 [1, E]; ref_mel float32 [1, T, bins]."""

    bos: int
    cond: torch.Tensor
    ref_mel: torch.Tensor


class Voice:
    """Codes → waveform, on the first GPU if there is one; the same codes always sound the same.

    n_units: the rows of the decoder's table of codes. digest: of that table.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, model: Qwen2_5OmniToken2WavModel, speaker: Speaker):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.float().eval().requires_grad_(False).to(device)
        self.speaker = speaker
        table = self.model.code2wav_dit_model.text_embed.codec_embed.weight
        self.n_units = len(table)
        self.digest = hashlib.sha256(_ALGORITHM.encode() + table.cpu().numpy().tobytes()).hexdigest()

    @classmethod
    def load(cls, folder: str | Path, speaker: str = SPEAKER) -> "Voice":
        """From a Qwen2.5-Omni folder, of which only token2wav and `spk_dict.pt` are read."""
        model, known, source = make_voice(folder, speaker)
        model.load_state_dict(read_part(source, PREFIX, torch.float32), assign=True)
        return cls(model, known)

    def encode(self, waveform: np.ndarray, sample_rate: int) -> np.ndarray:
        """InputError, always: the published weights hold no encoder."""
        raise InputError(
            "no codes can be made of a recording: Qwen2.5-Omni is published without the encoder of its codes; expected "
            "the very codes that the model spoke, as elocute sample writes them"
        )

    @torch.no_grad()
    def decode(self, units) -> np.ndarray:
        """Codes [U] → float32 [480 · U] in [−1, 1] in the published model. BrokenUnits for what is no code, and for
        more codes than the decoder has places."""
        units = as_units(units, self.n_units)
        if len(units) == 0:
            return np.zeros(0, dtype=np.float32)
        dit = self.model.code2wav_dit_model
        if len(units) * dit.repeats > (places := dit.config.max_position_embeddings):
            raise BrokenUnits(f"{len(units)} codes: the voice can say {places // dit.repeats} at most")
        device = dit.proj_out.weight.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the diffusion starts from noise
            torch.manual_seed(_NOISE_SEED)
            sound = self.model(
                torch.from_numpy(units)[None].to(device),
                conditioning=self.speaker.cond.to(device),
                reference_mel=self.speaker.ref_mel.to(device),
            )
        return sound.reshape(-1).float().cpu().numpy()

    def save(self, folder: str | Path) -> None:
        """InputError, always: the voice is part of its model's folder and is saved with it."""
        raise InputError(f"{folder}: the voice of a Qwen2.5-Omni is saved with its model")


def make_voice(folder: str | Path, speaker: str = SPEAKER) -> tuple[Qwen2_5OmniToken2WavModel, Speaker, Shards]:
    """token2wav without its weights, who speaks, and where they lie. InputError for what does not fit."""
    config, source = open_folder(folder)
    known, dit = read_speaker(Path(folder), speaker), config.token2wav_config.dit_config
    if known.ref_mel.shape[-1] != dit.mel_dim or known.cond.shape[-1] != dit.enc_emb_dim:
        raise InputError(
            f"{folder}/{SPEAKERS}: {speaker}: expected cond [1, {dit.enc_emb_dim}] and ref_mel [1, T, {dit.mel_dim}], "
            f"got {[*known.cond.shape]} and {[*known.ref_mel.shape]}"
        )
    model = without_weights(lambda: Qwen2_5OmniToken2WavModel(config.token2wav_config))
    check_fit(model, shapes_of(source, PREFIX), f"{source.folder}: {PREFIX[:-1]}")
    return model, known, source


def read_speaker(folder: Path, name: str = SPEAKER) -> Speaker:
    """One of `spk_dict.pt`. InputError when there is no such file or speaker, or it is not all there."""
    file = folder / SPEAKERS
    try:
        speakers = torch.load(file, map_location="cpu", weights_only=True)
        if name not in speakers:
            raise InputError(f"{file}: no such speaker: {name!r}; there: {', '.join(sorted(map(str, speakers)))}")
        said = speakers[name]
        cond, mel = said["cond"].float(), said["ref_mel"].float()
        return Speaker(int(said["bos_token"]), cond.reshape(1, -1), mel.reshape(1, *mel.shape[-2:]))
    except InputError:
        raise
    except Exception as error:  # torch raises what the damage happens to provoke
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{file}: not the speakers of a Qwen2.5-Omni: {reason}") from error
