"""What an id on the hub looks like, so that it is not taken for a path; nothing is asked there."""

import re

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_DATA_FILES = (".json", ".jsonl", ".parquet", ".txt")


def looks_like_hub_id(text: str) -> bool:
    """Say whether a text has the form ``owner/name``; ``~/x``, ``a/b/c``, ``a/b.json`` have not."""
    return _HUB_ID.fullmatch(text) is not None and not text.endswith(_DATA_FILES)
