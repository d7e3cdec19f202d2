"""Who judged: what stands beside scores, so that a reader can tell whether two came from one judge."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from elocute.data.digest import digest_path
from elocute.recipe.rewards import MEANS, RewardSpec, without_means
from elocute.rewards.outcome import Reward
from elocute.rewards.packaged import PACKAGED


def identity(spec: RewardSpec, reward: Reward) -> dict[str, Any]:
    """{"spec", "digests"}: a reward's entry without what its scores do not depend on, and what it reads (`digests`).

    reward: what was built from it; the model that its endpoint is asked for stands in the entry. No key, no address.
    """
    entry = without_means(spec.model_dump(mode="json", exclude={"name", "weight", "gate", "unit_credit"}))
    if hasattr(reward, "endpoint"):
        entry["model"] = reward.endpoint.entry.model
    return {"spec": entry, "digests": digests(spec)}


def digests(spec: BaseModel) -> dict[str, str]:
    """sha256 of each file and folder that a reward or an ear reads, by the key that names it.

    Weights, an ear's vocabulary, a function's own file; the packaged weights where `path` names no others.
    """
    return {key: digest_path(path) for key, path in _read(spec)}


def _read(spec: BaseModel) -> Iterator[tuple[str, Path]]:
    for key, value in spec:
        if isinstance(value, BaseModel):
            yield from ((f"{key}.{inner}", path) for inner, path in _read(value))
        elif isinstance(value, Path) and key not in MEANS:
            yield key, value
        elif key == "path" and spec.kind in PACKAGED:
            yield key, PACKAGED[spec.kind]()
        elif key == "function":
            place = value.rpartition(":")[0]
            yield key, Path(place if place.endswith(".py") else find_spec(place).origin)
