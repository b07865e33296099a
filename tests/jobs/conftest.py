"""Jobs under a real supervisor, for connections to talk to."""

from tests.supervisor.conftest import homes, supervised

__all__ = ["homes", "supervised"]
