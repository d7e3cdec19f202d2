"""From a recipe's entry to the reward it describes."""

from elocute.errors import InputError
from elocute.prosody.schema import Schema, load_schema
from elocute.recipe.ears import EarSpec, FasterWhisperSpec, TransformersEarSpec
from elocute.recipe.rewards import (
    AsrSpec,
    AudioJudgeSpec,
    EndpointSpec,
    JudgeSpec,
    LocalJudgeSpec,
    LocalListenerSpec,
    ProsodySpec,
    RewardSpec,
)
from elocute.rewards.asr import AsrReward, Ear, FasterWhisperEar, PocketSphinxEar, TransformersEar
from elocute.rewards.audio_judge import AudioJudgeReward, EndpointListener, LocalListener
from elocute.rewards.chat import ChatEndpoint, credentials
from elocute.rewards.classifier import ClassifierReward
from elocute.rewards.coherence import CoherenceReward
from elocute.rewards.dnsmos import DnsmosReward
from elocute.rewards.embedding import EmbeddingReward
from elocute.rewards.emotion import EmotionReward
from elocute.rewards.function import FunctionReward
from elocute.rewards.guard import GuardReward
from elocute.rewards.judge import JudgeReward
from elocute.rewards.judge_cache import JudgeCache
from elocute.rewards.likelihood import LikelihoodReward
from elocute.rewards.local_chat import LocalChat
from elocute.rewards.local_judge import LocalJudgeReward
from elocute.rewards.outcome import Reward
from elocute.rewards.perplexity import PerplexityReward
from elocute.rewards.prosody import ProsodyReward, find_targets
from elocute.rewards.relatedness import RelatednessReward
from elocute.rewards.rule import RuleReward
from elocute.rewards.speaker import SpeakerReward


def build_reward(spec: RewardSpec) -> Reward:
    """Opens what the reward needs. Raises InputError when a file, model, label, function or key is missing."""
    return BUILDERS[spec.kind](spec)


def build_ear(spec: EarSpec) -> Ear:
    """The recogniser of a reward or an evaluation."""
    if isinstance(spec, TransformersEarSpec):
        return TransformersEar(spec.path, spec.batch_size, spec.device)
    if isinstance(spec, FasterWhisperSpec):
        return FasterWhisperEar(spec.path, spec.workers, spec.device)
    if spec.vocabulary is None:
        return PocketSphinxEar(workers=spec.workers)
    try:
        lines = spec.vocabulary.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{spec.vocabulary}: cannot be read as UTF-8 text: {error}") from None
    try:
        return PocketSphinxEar(lines, spec.workers)
    except InputError as error:
        raise InputError(f"{spec.vocabulary}: {error}") from None


def _asr(spec: AsrSpec) -> Reward:
    ear, timed = build_ear(spec.ear), spec.word_credit > 0
    if spec.form == "likelihood":
        return LikelihoodReward(spec.name, ear, spec.reference, timed=timed)
    if timed and isinstance(ear, TransformersEar):
        ear.check_words()
    return AsrReward(spec.name, ear, spec.form, spec.reference, timed=timed)


def _endpoint(spec: JudgeSpec | EndpointSpec) -> ChatEndpoint:
    return ChatEndpoint(
        credentials(spec.model),
        concurrency=spec.concurrency,
        timeout=spec.timeout,
        attempts=spec.attempts,
        deadline=spec.deadline,
    )


def _judge(spec: JudgeSpec) -> Reward:
    return JudgeReward(
        spec.name,
        _endpoint(spec),
        spec.rubric,
        send_audio=spec.send_audio,
        temperature=spec.temperature,
        max_tokens=spec.max_tokens,
        cache=spec.cache,
    )


def _chat(spec: LocalJudgeSpec | LocalListenerSpec) -> LocalChat:
    return LocalChat(spec.path, spec.batch_size, spec.device, spec.dtype)


def _local_judge(spec: LocalJudgeSpec) -> Reward:
    return LocalJudgeReward(
        spec.name,
        _chat(spec),
        spec.rubric,
        send_audio=spec.send_audio,
        verdict=spec.verdict,
        max_tokens=spec.max_tokens,
    )


def _check_dimensions(spec: ProsodySpec | AudioJudgeSpec, schema: Schema) -> None:
    if unknown := [name for name in spec.dimensions or () if name not in schema.dimensions]:
        raise InputError(f"dimensions: {unknown[0]!r} is not one of the schema's: {', '.join(schema.dimensions)}")


def _prosody(spec: ProsodySpec) -> Reward:
    schema = load_schema(spec.labels)
    _check_dimensions(spec, schema)
    targets = find_targets(schema, spec.measures, spec.recordings, spec.dimensions)
    return ProsodyReward(spec.name, schema, targets, spec.credit, spec.reference)


def _audio_judge(spec: AudioJudgeSpec) -> Reward:
    schema, own = load_schema(spec.labels), spec.listener
    _check_dimensions(spec, schema)
    if isinstance(own, LocalListenerSpec):
        listener = LocalListener(_chat(own))
    else:
        cache = None if own.cache is None else JudgeCache(own.cache)
        listener = EndpointListener(_endpoint(own), temperature=own.temperature, cache=cache)
    return AudioJudgeReward(spec.name, listener, schema, spec.credit, spec.dimensions)


BUILDERS = {
    "rule": lambda s: RuleReward(s.name, s.column, s.match),
    "asr": _asr,
    "embedding": lambda s: EmbeddingReward(s.name, s.path, s.column, s.batch_size, s.device),
    "classifier": lambda s: ClassifierReward(s.name, s.path, s.label, s.batch_size, s.device),
    "perplexity": lambda s: PerplexityReward(s.name, s.path, s.batch_size, s.device),
    "coherence": lambda s: CoherenceReward(s.name, s.path, s.batch_size, s.device),
    "relatedness": lambda s: RelatednessReward(s.name, s.path, s.batch_size, s.device),
    "function": lambda s: FunctionReward(s.name, s.function, s.low, s.high, s.conversational),
    "judge": _judge,
    "local_judge": _local_judge,
    "prosody": _prosody,
    "emotion": lambda s: EmotionReward(s.name, s.path, s.dimension, s.label_map, s.device),
    "audio_judge": _audio_judge,
    "guard": lambda s: GuardReward(s.name, s.limits, s.reference),
    "speaker": lambda s: SpeakerReward(s.name, s.path, s.reference, s.device),
    "dnsmos": lambda s: DnsmosReward(s.name, s.path),
}
