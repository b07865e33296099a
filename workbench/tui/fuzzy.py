"""Fuzzy matching of what is typed against a text; pure.

Invariant: an empty query matches everything equally, so the order of the rows stays.
"""


def score(query: str, text: str) -> int | None:
    """Say how well the characters of ``query`` occur in this order in ``text``; None: they do not.

    More is better: characters that follow each other and beginnings of words count double.
    score("lc", "long_context") beats score("lc", "alchemy").
    """
    text, total, at = text.casefold(), 0, 0
    previous = -2
    for character in query.casefold():
        if character.isspace():
            continue
        found = _best(character, text, at, previous)
        if found < 0:
            return None
        total += 1
        if found == previous + 1:
            total += 2
        if found == 0 or not text[found - 1].isalnum():
            total += 2
        previous, at = found, found + 1
    return total


def _best(character: str, text: str, begin: int, previous: int) -> int:
    """Prefer the neighbour, then the nearest beginning of a word, then the nearest place."""
    if previous + 1 == begin and text.startswith(character, begin) and begin > 0:
        return begin
    nearest = text.find(character, begin)
    at = nearest
    while at > 0 and text[at - 1].isalnum():
        at = text.find(character, at + 1)
    return at if at >= 0 and at - begin < 12 else nearest
