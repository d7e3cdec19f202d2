"""Rollouts from a server: what is asked of it, that its answers are the policy's, and what stops a run.

The server is a naive one of the same protocol; test_vllm_server.py does the same with vLLM itself.
"""

import asyncio

import pytest
import torch

from elocute.errors import InputError, RunError
from elocute.models.interleaved import InterleavedLM
from elocute.recipe.rollout import Vllm
from elocute.rollout import Sampling, sample_groups, seed_of, vllm_server
from elocute.rollout.vllm import VllmSampler, distance, grow, score
from tests.rollout.vllm_stand_in import standing_in

PROMPTS = [torch.tensor([301, 302, 303]), torch.tensor([301, 400, 401, 402, 403])]
SEEDS = [[1, 2], [3, 4]]


@pytest.fixture
def server(speaking_folder):
    with standing_in(speaking_folder) as server:
        yield server


@pytest.fixture
def lm(speaking_folder):
    return InterleavedLM.load(speaking_folder)


def sampler_of(server, folder, own=None, **settings) -> VllmSampler:
    sampler = VllmSampler(Vllm(url=server.url, **{"timeout": 120.0} | settings), folder, own)
    sampler.stay(folder, "base")
    return sampler


def flat(groups):
    return [rollout for group in groups for rollout in group]


# what is asked


def test_requests_are_token_ids_up_to_the_next_forced_mark(tiny_lm):
    """Ratio 2:10 with marks: two text tokens, a forced mark, ten units, a mark, and so on, each asked for behind the
    answer so far; the last request asks for no more than is left."""
    layout, asked = tiny_lm.layout, []

    async def draw(prompt, parameters):
        asked.append((prompt, parameters))
        speech = len(asked) % 2 == 0
        return [(layout.first_unit if speech else 310, -0.5)] * parameters["max_tokens"]

    rollout = asyncio.run(grow(draw, tiny_lm, PROMPTS[0], 7, Sampling(20, 0.9, 5, 0.8)))
    begin, end, unit = layout.speech_begin, layout.speech_end, layout.first_unit
    assert rollout.tokens.ids.tolist() == [310, 310, begin, *[unit] * 10, end, 310, 310, begin, unit, unit, unit]
    assert rollout.logprob.tolist() == [0.0 if id in (begin, end) else -0.5 for id in rollout.tokens.ids]
    assert rollout.truncated and rollout.broken.startswith("no end") and rollout.seed == 7
    given = PROMPTS[0].tolist()
    begins = [0, 3, 14, 17]  # places behind a forced mark
    assert [prompt for prompt, _ in asked] == [given + rollout.tokens.ids[:place].tolist() for place in begins]
    assert [parameters["max_tokens"] for _, parameters in asked] == [2, 10, 2, 3]
    assert [parameters["seed"] for _, parameters in asked] == [seed_of(7, place) for place in begins]
    assert asked[0][1] == {
        "max_tokens": 2, "temperature": 0.9, "top_k": 5, "top_p": 0.8, "seed": seed_of(7, 0), "logprobs": 0,
        "stop_token_ids": [layout.text_end, layout.answer_end, begin, end], "ignore_eos": True, "detokenize": False,
    }  # fmt: skip


def test_what_was_drawn_behind_a_break_is_no_part_of_the_answer(tiny_lm):
    async def draw(_prompt, parameters):
        return [(tiny_lm.layout.first_unit, -1.0)] * parameters["max_tokens"]  # units where text must stand

    rollout = asyncio.run(grow(draw, tiny_lm, PROMPTS[0], 7, Sampling(20)))
    assert len(rollout.tokens) == len(rollout.logprob) == 1 and rollout.broken and not rollout.truncated


def test_the_score_is_the_local_samplers(speaking_lm):
    """Log-probs and entropies, also of a truncated distribution, are those that sampling here says of each token."""
    for sampling in (Sampling(40, 0.8), Sampling(40, 1.1, 9, 0.9)):
        rollouts = flat(sample_groups(speaking_lm, PROMPTS, SEEDS, sampling))
        assert any(not rollout.tokens.action.all() for rollout in rollouts)
        for rollout, (logp, entropy) in zip(rollouts, score(speaking_lm, rollouts, sampling), strict=True):
            assert torch.allclose(logp, rollout.logprob, atol=1e-5)
            assert torch.allclose(entropy, rollout.entropy, atol=1e-5)


def test_the_distance_is_over_sampled_tokens_and_bounded(speaking_lm):
    [[rollout]] = sample_groups(speaking_lm, PROMPTS[:1], [[1]], Sampling(40))
    away = rollout.logprob + rollout.tokens.action * 0.25 + ~rollout.tokens.action * 9.0
    away[0] = -torch.inf
    count = int(rollout.tokens.action.sum())
    assert distance(rollout, away).tolist() == pytest.approx([0.25 * (count - 1) + 10, count], rel=1e-5)


# what comes back


@pytest.mark.parametrize("sampling", [Sampling(40, 0.8), Sampling(40, 1.1, 9, 0.9)])
def test_a_servers_answers_are_the_models_own(server, speaking_folder, lm, sampling):
    sampler = sampler_of(server, speaking_folder)
    groups = sampler(lm, PROMPTS, SEEDS, sampling)
    assert [[rollout.seed for rollout in group] for group in groups] == SEEDS
    rollouts = flat(groups)
    assert any(not rollout.tokens.action.all() for rollout in rollouts)  # forced marks are among the tokens
    for rollout, (logp, entropy) in zip(rollouts, score(lm, rollouts, sampling), strict=True):
        assert torch.allclose(rollout.logprob, logp, atol=1e-4) and rollout.entropy.equal(entropy)
    assert sampler.drift[0] / sampler.drift[1] < 1e-5
    assert sampler.drift[1] == sum(int(rollout.tokens.action.sum()) for rollout in rollouts)
    again = flat(sampler(lm, PROMPTS, SEEDS, sampling))
    assert all(one.tokens.ids.equal(two.tokens.ids) for one, two in zip(rollouts, again, strict=True))


@pytest.mark.parametrize("temperature", [[0.8], None])
def test_a_temperature_may_be_the_heads_or_the_models_own(server, speaking_folder, lm, temperature):
    lm.temperature = 0.7
    groups = sampler_of(server, speaking_folder)(lm, PROMPTS[:1], [[1]], Sampling(4, temperature))
    assert server.asked[0]["sampling_params"]["temperature"] == (0.8 if temperature else 0.7) and len(groups) == 1


def nudged(lm):
    with torch.no_grad():
        torch.manual_seed(5)
        for parameter in lm.model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    return lm


def test_the_server_follows_the_weights(server, speaking_folder, lm, tmp_path):
    sampler = sampler_of(server, speaking_folder, tmp_path / "weights", max_drift=0.01)
    nudged(lm)
    with pytest.raises(RunError, match="nats a token from the model's own"):
        sampler(lm, PROMPTS, SEEDS, Sampling(20))
    for step in (4, 5):
        sampler.follow(lm, step)
        sampler(lm, PROMPTS, SEEDS, Sampling(20))
        assert server.version == server.loads[-1] == str(tmp_path / f"weights/step-{step}")
        assert [path.name for path in sampler.weights.iterdir()] == [f"step-{step}"]
    assert sampler.drift[0] / sampler.drift[1] < 1e-5
    sampler.clear()
    assert not sampler.weights.exists()


def test_stale_weights_stop_the_run(server, speaking_folder, lm):
    sampler = sampler_of(server, speaking_folder)
    server.version = "of another run"
    with pytest.raises(RunError, match="stale weights: of another run answered, not base"):
        sampler(lm, PROMPTS, SEEDS, Sampling(20))


def test_only_some_answers_are_scored(server, speaking_folder, lm):
    groups = sampler_of(server, speaking_folder)(lm, PROMPTS[:1], [list(range(40))], Sampling(4))
    scored = [not rollout.entropy.isnan().any() for rollout in groups[0]]
    assert sum(scored) == 14 and scored[0] and scored[39]  # every third


# a server that is lost


def test_a_server_that_comes_back_gets_its_weights_again(server, speaking_folder, lm, caplog):
    sampler, down = sampler_of(server, speaking_folder), []
    expected = flat(sampler(lm, PROMPTS, SEEDS, Sampling(20)))

    def once(path, body):
        if path == "/inference/v1/generate" and not down or path == "/health" and len(down) < 3:
            down.append(path)
            server.version = "default"  # started anew
            return 500, {"error": {"message": "EngineCore died"}}
        return None

    server.ruin = once
    found = flat(sampler(lm, PROMPTS, SEEDS, Sampling(20)))
    assert down == ["/inference/v1/generate", "/health", "/health"] and len(server.loads) == 2
    assert all(one.tokens.ids.equal(two.tokens.ids) for one, two in zip(expected, found, strict=True))
    assert "EngineCore died); waiting for the vLLM server, 120 s at most" in caplog.text


@pytest.mark.parametrize("given", [True, False], ids=["by the first process", "by nobody"])
def test_of_several_processes_one_gives_a_server_its_weights_again(server, speaking_folder, lm, monkeypatch, given):
    """Whose turn comes later waits: it would interrupt the others. If nobody before it does, it gives them."""
    monkeypatch.setattr(vllm_server, "TURN_SECONDS", 2.0)
    sampler, probes = sampler_of(server, speaking_folder), []
    sampler.server.expect(speaking_folder, "base", turn=1)

    def restarted(path, body):
        if path == "/inference/v1/generate" and not probes:
            server.version = "default"
            probes.append(path)
            return 500, {}
        if path == "/weight_info":
            probes.append(path)
            if given and len(probes) == 2:
                server.version = "base"  # before it is asked again

    server.ruin = restarted
    assert len(flat(sampler(lm, PROMPTS, SEEDS, Sampling(20)))) == 4
    assert len(server.loads) == 1 + (not given) and (given or len(probes) >= 3)


def test_two_runs_with_one_place_for_weights_do_not_take_each_others(server, speaking_folder, lm, tmp_path):
    weights = {"weights": tmp_path / "shared"}
    one, two = (sampler_of(server, speaking_folder, tmp_path / run, **weights) for run in ("one", "two"))
    for sampler in (one, two):
        sampler.follow(lm, 1)
    two(lm, PROMPTS, SEEDS, Sampling(20))
    with pytest.raises(RunError, match="stale weights: .*two/step-1 answered, not .*one/step-1"):
        one(lm, PROMPTS, SEEDS, Sampling(20))


def test_a_server_that_lets_go_of_a_request_is_asked_again(server, speaking_folder, lm):
    sampler, aborted = sampler_of(server, speaking_folder), []

    def once(path, body):
        if path == "/inference/v1/generate" and not aborted:
            aborted.append(path)
            return 200, {
                "choices": [{"token_ids": [], "finish_reason": "abort", "logprobs": None, "weight_versions": []}]
            }

    server.ruin = once
    assert len(flat(sampler(lm, PROMPTS, SEEDS, Sampling(20)))) == 4 and aborted


def test_the_wait_for_a_server_is_bounded(server, speaking_folder, lm):
    sampler = sampler_of(server, speaking_folder)
    server.ruin, sampler.server.timeout = lambda path, body: (503, {}), 0.5
    with pytest.raises(RunError, match=r"the vLLM server is gone \(.*\) and was not back within 0.5 s"):
        sampler(lm, PROMPTS, SEEDS, Sampling(20))


def test_a_request_over_which_the_server_dies_each_time_ends_the_run(server, speaking_folder, lm):
    sampler = sampler_of(server, speaking_folder)
    server.ruin = lambda path, body: (500, {}) if path == "/inference/v1/generate" else None
    with pytest.raises(RunError, match="lost the vLLM server 3 times over one request"):
        sampler(lm, PROMPTS[:1], [[1]], Sampling(20))


def test_a_refusal_is_said_in_the_servers_words(server, speaking_folder, lm):
    sampler = sampler_of(server, speaking_folder)
    server.ruin = lambda path, body: (403, {"error": {"message": "Restart vllm serve with --enable-scale-out"}})
    with pytest.raises(RunError, match=r"generate: HTTP 403 \(Restart vllm serve with --enable-scale-out\)"):
        sampler(lm, PROMPTS, SEEDS, Sampling(20))


def test_weights_that_the_server_cannot_load_stop_the_run(server, speaking_folder, lm, tmp_path):
    sampler = sampler_of(server, speaking_folder, tmp_path / "weights")
    server.ruin = lambda path, body: (
        (500, {"error": {"message": "no such file"}}) if path == "/collective_rpc" else None
    )
    with pytest.raises(RunError, match=r"/collective_rpc: HTTP 500 \(no such file\)"):
        sampler.follow(lm, 0)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"choices": []}, r"malformed reply \(ValueError"),
        ({"choices": [{"token_ids": [1], "finish_reason": "stop", "logprobs": None}]}, r"malformed reply \(TypeError"),
    ],
)
def test_a_malformed_answer_stops_the_run(server, speaking_folder, lm, said, message):
    sampler = sampler_of(server, speaking_folder)
    server.ruin = lambda path, body: (200, said) if path == "/inference/v1/generate" else None
    with pytest.raises(RunError, match=message):
        sampler(lm, PROMPTS, SEEDS, Sampling(20))


# a server or a model that will not do


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ((404, {"detail": "Not Found"}), RunError, r"HTTP 404 \(Not Found\): it must be started as docs/vllm.md says"),
        ((200, {"vllm_config": "as text"}), InputError, "expected a vLLM server \\(0.32\\), it is none"),
    ],
)
def test_another_server_is_refused(server, speaking_folder, said, error, message):
    server.ruin = lambda path, body: said
    with pytest.raises(error, match=message):
        sampler_of(server, speaking_folder)


def test_a_server_with_other_log_probs_is_refused(speaking_folder):
    with standing_in(speaking_folder, logprobs_mode="raw_logprobs") as server:
        with pytest.raises(InputError, match="--logprobs-mode processed_logprobs, not raw_logprobs"):
            sampler_of(server, speaking_folder)


def test_a_context_that_is_too_short_is_said_beforehand(speaking_folder, lm):
    with standing_in(speaking_folder, max_model_len=24) as server:
        sampler = sampler_of(server, speaking_folder)
        sampler(lm, PROMPTS, SEEDS, Sampling(19))
        with pytest.raises(InputError, match="expected --max-model-len 25 or more, it is 24"):
            sampler(lm, PROMPTS, SEEDS, Sampling(20))


def test_a_model_of_several_vocabularies_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["CsmForConditionalGeneration"]}')
    with pytest.raises(InputError, match="rollout.vllm: expected a model of one vocabulary .* is of kind csm"):
        VllmSampler(Vllm(url="http://127.0.0.1:9"), tmp_path)
