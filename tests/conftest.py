"""What holds for every test of the repository."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# Read by OpenMP when torch loads it: threads that spin while they wait make a busy machine of two
# cores twenty times slower. Child processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell that starts the tests in its background lets them ignore Ctrl-C, and with them whatever
# they start: what they interrupt would go on.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Examples are judged by what they show, never by how long a busy machine takes for them.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep prepared data out of the user's cache; processes that tests start inherit it."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
