"""What every section of a config is: a frozen record that refuses unknown keys.

The fields of the sections are documented here and nowhere else: help texts, forms and the
reference read ``description`` from the annotation.
"""

from typing import Annotated

import msgspec


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of a config; every field has a default, so a resolved config names them all."""


PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
NonNegativeInt = Annotated[int, msgspec.Meta(ge=0)]
