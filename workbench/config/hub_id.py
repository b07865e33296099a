"""What an id on the hub looks like, so that it is not taken for a path; nothing is asked there.

A model that the hub's own tools have downloaded is found in their cache, by its id.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_SNAPSHOT = re.compile(r".*/models--(.+)/snapshots/[^/]+")

_DATA_FILES = (".json", ".jsonl", ".parquet", ".txt")


def looks_like_hub_id(text: str) -> bool:
    """Say whether a text has the form ``owner/name``; ``~/x``, ``a/b/c``, ``a/b.json`` have not."""
    return _HUB_ID.fullmatch(text) is not None and not text.endswith(_DATA_FILES)


def downloaded_model(hub_id: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Find the folder of a model in the cache of ``hf download``; None where it is not there.

    The revision is the one that ``main`` had when it was last downloaded. Where the cache lies:
    ``HF_HUB_CACHE``, ``HF_HOME`` and ``XDG_CACHE_HOME``, as the hub's library reads them.
    """
    try:
        kept = environment.get("XDG_CACHE_HOME") or "~/.cache"
        home = environment.get("HF_HOME") or f"{kept}/huggingface"
        cache = Path(environment.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
        repository = cache / f"models--{hub_id.replace('/', '--')}"
        revision = (repository / "refs" / "main").read_text("ascii").strip()
        folder = repository / "snapshots" / revision
        return folder if revision and (folder / "config.json").is_file() else None
    except (OSError, ValueError, RuntimeError):  # no such model, or no home folder
        return None


def model_name(folder: Path) -> str:
    """Give what a model is called: the name of its folder, of one in the hub's cache its id."""
    snapshot = _SNAPSHOT.fullmatch(folder.as_posix())
    return snapshot[1].replace("--", "/", 1) if snapshot else folder.name
