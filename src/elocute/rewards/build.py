"""From a recipe's entry to the reward it describes."""

from elocute.errors import InputError
from elocute.recipe.rewards import AsrSpec, JudgeSpec, PocketSphinxSpec, RewardSpec, TransformersEarSpec
from elocute.rewards.asr import AsrReward, Ear, PocketSphinxEar, TransformersEar
from elocute.rewards.chat import ChatEndpoint, credentials
from elocute.rewards.classifier import ClassifierReward
from elocute.rewards.coherence import CoherenceReward
from elocute.rewards.embedding import EmbeddingReward
from elocute.rewards.function import FunctionReward
from elocute.rewards.judge import JudgeReward
from elocute.rewards.outcome import Reward
from elocute.rewards.perplexity import PerplexityReward
from elocute.rewards.relatedness import RelatednessReward
from elocute.rewards.rule import RuleReward


def build_reward(spec: RewardSpec) -> Reward:
    """Opens what the reward needs. Raises InputError when a file, model, label, function or key is missing."""
    return BUILDERS[spec.kind](spec)


def build_ear(spec: PocketSphinxSpec | TransformersEarSpec) -> Ear:
    """The recogniser of a reward or an evaluation."""
    if isinstance(spec, TransformersEarSpec):
        return TransformersEar(spec.path, spec.batch_size, spec.device)
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
    return AsrReward(spec.name, build_ear(spec.ear), spec.form, spec.reference)


def _judge(spec: JudgeSpec) -> Reward:
    endpoint = ChatEndpoint(
        credentials(spec.model),
        concurrency=spec.concurrency,
        timeout=spec.timeout,
        attempts=spec.attempts,
        deadline=spec.deadline,
    )
    return JudgeReward(
        spec.name,
        endpoint,
        spec.rubric,
        send_audio=spec.send_audio,
        temperature=spec.temperature,
        max_tokens=spec.max_tokens,
        cache=spec.cache,
    )


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
}
