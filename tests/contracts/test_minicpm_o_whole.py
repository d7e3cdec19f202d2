"""All parts of MiniCPM-o 2.6 in a row: heard, written, spoken."""

from pathlib import Path

import numpy as np
import pytest
import torch

from elocute.models.minicpm_o import MiniCPMO
from elocute.models.minicpm_o.audio import fill, hear, log_mel
from elocute.models.minicpm_o.prompt import Recording, Turn, lay_out, load_tokenizer, spans, speaker_place
from elocute.models.minicpm_o.spoken import load_text_tokenizer, spoken_ids, target_codes, text_slots
from elocute.speech.chat_tts import ChatTTSCodec
from tests.contracts import minicpm_o


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return minicpm_o.checkpoint(tmp_path_factory.mktemp("minicpm") / "model")


class Told:
    """A prompt with a recording, and an answer to it."""

    def __init__(self, folder: Path):
        self.network = MiniCPMO.load(folder)
        self.config = self.network.config
        self.tokenizer, self.tokens = load_tokenizer(folder, self.config)
        self.voice = np.random.default_rng(0).normal(size=20000).astype(np.float32) * 0.1
        turns = [Turn("user", ["Sound like this.", Recording(20000), "Go."]), Turn("user", ["Hello!"])]
        self.prompt = torch.tensor(self.tokenizer.encode(lay_out(turns, self.config, speak=True)))
        self.answer = torch.tensor(self.tokenizer.encode("the cat sat<|tts_eos|><|im_end|>"))
        reader = load_text_tokenizer(folder, self.config.tts)
        text = self.tokenizer.decode(spoken_ids(self.answer, self.tokens))
        slots, length = text_slots(text, reader, self.config.tts)
        self.text, self.length = slots[None], torch.tensor([length])

    def states(self) -> torch.Tensor:
        """The LLM's last states over prompt and answer, [P+N, D]."""
        ids = torch.cat([self.prompt, self.answer])
        embedded = self.network.llm.get_input_embeddings()(ids)
        bounds = spans(ids, self.tokens.audio_start, self.tokens.audio_end)
        heard = hear(self.network.apm, self.network.audio_projection_layer, log_mel(self.voice))
        return self.network.llm.model(inputs_embeds=fill(embedded, bounds, torch.cat(heard))[None]).last_hidden_state[0]

    def speaker(self, states: torch.Tensor) -> torch.Tensor:
        return states[speaker_place(self.prompt, self.tokens)][None]


def logprobs(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """log softmax(logits [..., V]) at codes int64 [...]."""
    return logits.float().log_softmax(-1).gather(-1, codes[..., None])[..., 0]


def test_what_is_spoken_moves_the_ear_the_llm_and_the_decoder(folder):
    told = Told(folder)
    tts, voice = told.network.tts, told.speaker(told.states())
    codes = torch.randint(0, 625, (1, 12, 4), generator=torch.Generator().manual_seed(0))
    logprobs(tts.logits(tts(told.text, told.length, voice, codes)), codes).sum().backward()
    network = told.network
    assert network.tts.head_code[3].parametrizations.weight.original1.grad.abs().sum() > 0
    assert network.tts.projector.linear1.weight.grad.abs().sum() > 0
    assert network.llm.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0  # the voice is a state of the LLM
    assert network.audio_projection_layer.linear1.weight.grad.abs().sum() > 0


def test_the_voice_is_the_prompts_alone(folder):
    """Nothing of the answer reaches it, so that it may be taken from the prompt's pass."""
    told = Told(folder)
    voice = told.speaker(told.states())
    told.answer = told.answer.flip(0)
    assert torch.allclose(voice, told.speaker(told.states()), atol=1e-6)


def test_a_recording_is_a_target(folder):
    """Supervised: encode, end, and the decoder's loss on it falls when it is trained on it."""
    told = Told(folder)
    codec = ChatTTSCodec.load(folder)
    codes = target_codes(torch.from_numpy(codec.encode(told.voice[:6000], 16000)), told.config.tts.eos)[None]
    voice = told.speaker(told.states()).detach()
    optimiser = torch.optim.AdamW(told.network.tts.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        logits = told.network.tts.logits(told.network.tts(told.text, told.length, voice, codes))
        loss = -logprobs(logits, codes).sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert codes.shape == (1, 19, 4) and all(b < a for a, b in zip(losses, losses[1:], strict=False))


def test_decoder_in_float32_behind_an_llm_in_bfloat16(folder):
    """As the original is used: `model.tts.float()`."""
    network = MiniCPMO.load(folder, ["llm", "tts"], dtype="auto")
    network.tts.float()
    voice = network.llm.model(input_ids=torch.arange(9)[None]).last_hidden_state[:, 5]
    states = network.tts(torch.arange(302)[None], torch.tensor([14]), voice, torch.zeros(1, 3, 4, dtype=torch.long))
    assert voice.dtype == torch.bfloat16 and states.dtype == torch.float32 and states.isfinite().all()
