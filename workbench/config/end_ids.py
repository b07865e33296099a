"""Which tokens end a text, as a model's config files say: read strictly, without a tokenizer.

Serves both sides: what finalize would refuse is known before a run starts.
"""

from pathlib import Path

from workbench.config.json_file import read_json_object
from workbench.errors import DataError

_FILES = ("generation_config.json", "config.json")
_LARGEST_ID = (1 << 31) - 1


def stated_end_ids(folder: Path) -> frozenset[int]:
    """Collect ``eos_token_id`` of generation_config.json and config.json.

    Raises:
        DataError: a file is there and cannot be read, or names an end that is no id.
    """
    found: set[int] = set()
    for name in _FILES:
        try:
            stated = read_json_object(folder / name, DataError).get("eos_token_id")
        except FileNotFoundError:
            continue
        for number in stated if isinstance(stated, list) else [stated]:
            if number is None:
                continue
            if type(number) is not int or not 0 <= number <= _LARGEST_ID:
                raise DataError(
                    f"eos_token_id is {stated!r}, which is no token's number",
                    where=str(folder / name),
                    remedy=f"correct it, or copy {name} anew from the model's source",
                )
            found.add(number)
    return frozenset(found)
