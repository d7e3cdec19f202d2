"""Replies of a judge on disk, addressed by the content of the whole request: nothing is asked twice."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elocute.data.files import write_atomically

log = logging.getLogger(__name__)


def address(request: Mapping[str, Any]) -> str:
    """SHA-256 of the request; model, rubric, question, text, the audio's bytes and sampling are all in it."""
    canonical = json.dumps(request, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


class JudgeCache:
    """One JSON file a reply, `folder/ab/ab….json`, written whole or not at all; several processes may share it."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def get(self, key: str) -> str | None:
        """The reply at this address, or None. A damaged entry counts as absent, with a warning."""
        path = self._path(key)
        try:
            reply = json.loads(path.read_text(encoding="utf-8"))["reply"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            reply = None
        if not isinstance(reply, str):
            log.warning("%s: a damaged cache entry, asked again", path)
            return None
        return reply

    def put(self, key: str, reply: str, model: str) -> None:
        write_atomically(self._path(key), json.dumps({"model": model, "reply": reply}).encode())

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
