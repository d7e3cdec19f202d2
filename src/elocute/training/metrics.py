"""What one line of metrics.jsonl holds: flat names, plain numbers, None where there was nothing to measure."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping

import torch
from accelerate import Accelerator

from elocute.objectives.mixing import RawLambda
from elocute.training.experience import Experience

Labels = Mapping[str, Counter[tuple[str, str]]]
"""By "reward/dimension", the number of answers by (label asked for, label heard)."""


def loss_metrics(totals: dict[str, float]) -> dict:
    """Loss components, KL and NLL per token by modality, clip fraction, sampler mismatch."""
    parts = {name: totals[name] for name in ("loss/pg", "loss/sft", "loss/kl_text", "loss/kl_speech") if name in totals}
    values: dict = {"loss/total": sum(parts.values())} | parts
    for name in ("kl/text", "kl/speech", "nll/text", "nll/speech"):
        if name in totals:
            values[name] = _ratio(totals[name], totals[f"{name}_tokens"])
    if "pg/tokens" in totals:
        values["pg/tokens"] = totals["pg/tokens"]
        values["pg/clip_fraction"] = _ratio(totals["pg/clipped"], totals["pg/tokens"])
        if "pg/credited" in totals:
            values["pg/credited"] = _ratio(totals["pg/credited"], totals["pg/tokens"])
        for name in ("mismatch", "ratio", "truncated"):
            values[f"sampler/{name}"] = _ratio(totals[f"sampler/{name}"], totals["pg/tokens"])
    return values


def lambda_metrics(raw: RawLambda) -> dict:
    """λ before smoothing and its gates, means over the counted prompts."""
    information, reward = raw.information_gate[raw.counted], raw.reward_gate[raw.counted]
    return {
        "lambda/raw": raw.value,
        "gate/information": float(information.mean()) if len(information) else None,
        "gate/reward": float(reward.mean()) if len(reward) else None,
    }


def preference_metrics(totals: dict[str, float]) -> dict:
    """Loss components, rewards and log-probs a pair, NLL per token of the chosen answers, prompts with and without a
    pair."""
    pairs = totals["pairs/kept"]
    parts = {name: totals[name] for name in ("loss/dpo", "loss/sft") if name in totals}
    values: dict = {"loss/total": sum(parts.values())} | parts
    for name, total in totals.items():
        if name.startswith(("dpo/", "logp/")):
            values[name] = _ratio(total, pairs)
        elif name.startswith("pairs/"):
            values[name] = total
    for name in ("nll/text", "nll/speech"):
        if name in totals:
            values[name] = _ratio(totals[name], totals[f"{name}_tokens"])
    return values


def experience_metrics(experience: Experience, accelerator: Accelerator) -> dict:
    """Rewards, their spread within groups and what they measured, outcomes, entropy and truncation, over all ranks."""
    sums: dict[str, float] = {"rollout/tokens": 0, "rollout/truncated": 0, "rollout/no_text": 0}
    for modality in ("text", "speech"):
        sums[f"entropy/{modality}"] = sums[f"entropy/{modality}_tokens"] = 0.0
    for rollout in experience.rollouts:
        tokens = rollout.tokens
        sums["rollout/tokens"] += len(tokens)
        sums["rollout/truncated"] += rollout.truncated
        sums["rollout/no_text"] += not bool((tokens.text & tokens.action).any())
        for modality, mask in (("text", tokens.text), ("speech", ~tokens.text)):
            mask = mask & tokens.action & ~rollout.entropy.isnan()
            sums[f"entropy/{modality}"] += float(rollout.entropy[mask].sum())
            sums[f"entropy/{modality}_tokens"] += int(mask.sum())
    judged = experience.judged
    means: dict[str, tuple[float, float]] = {}
    if experience.drift is not None:
        means["sampler/drift"] = tuple(experience.drift.tolist())
    if judged:
        sums |= {f"outcomes/{name}": count for name, count in judged.counts.items()}
        of_rewards = {"reward": judged.sums, "measured": judged.measures, "spread": judged.spread}
        for kind, found in of_rewards.items():
            means |= {f"{kind}/{name}": value for name, value in found.items()}
    for name, (total, count) in means.items():
        sums[name], sums[f"{name}_count"] = total, count
    names = sorted(sums)
    local = torch.tensor([float(sums[name]) for name in names], dtype=torch.float64, device=accelerator.device)
    sums = dict(zip(names, accelerator.reduce(local, "sum").tolist(), strict=True))
    for name in ("entropy/text", "entropy/speech"):
        sums[name] = _ratio(sums[name], sums.pop(f"{name}_tokens"))
    for name in means:
        sums[name] = _ratio(sums[name], sums.pop(f"{name}_count"))
    if judged and judged.labels:
        everyone = _gathered_labels(judged.labels, accelerator)
        sums |= {f"alike/{name}": alike(labels[name] for labels in everyone) for name in judged.labels}
    scored = experience.rewards[experience.available]
    if len(scored):
        sums |= {
            "reward/mean": float(scored.mean()),
            "reward/std": float(scored.std(correction=0)),
            "reward/max": float(scored.max()),
        }
    return sums


def _gathered_labels(labels: Labels, accelerator: Accelerator) -> list[Labels]:
    """Those of each process, by way of bytes of JSON: accelerate would pickle them."""
    said = json.dumps({name: [[*pair, count] for pair, count in of.items()] for name, of in labels.items()}).encode()
    row = torch.tensor([list(said)], dtype=torch.uint8, device=accelerator.device)
    rows = accelerator.gather(accelerator.pad_across_processes(row, dim=1, pad_index=ord(" ")))
    return [
        {name: Counter({(asked, heard): n for asked, heard, n in of}) for name, of in json.loads(bytes(one)).items()}
        for one in rows.tolist()
    ]


def alike(parts: Iterable[Counter[tuple[str, str]]]) -> float | None:
    """Share of the answers in which the commonest label was heard, None where all were asked for the same one.

    1 is a judge that does not listen, or a voice that does not change. parts: a process's answers each, by (label asked
    for, label heard): neither the commonest label nor whether several were asked for is known of one process alone.
    """
    asked, heard = set(), Counter()
    for (wanted, label), count in sum(parts, Counter()).items():
        asked.add(wanted)
        heard[label] += count
    return max(heard.values()) / heard.total() if len(asked) > 1 else None


def flat(values: dict, prefix: str = "") -> dict:
    """Nested settings as `a.b: value`, for trackers."""
    result: dict = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return result


def _ratio(total: float, count: float) -> float | None:
    return total / count if count else None
