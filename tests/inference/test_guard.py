"""What a server has started ends with it, also when nobody asks it to."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = "import time; print('here', flush=True); time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + CHILD
PARENT = """
import subprocess, sys, time
from workbench.inference.guard import post_guard
post_guard()
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True, stdout=-1)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("child", "seconds"), [(CHILD, 4.0), (DEAF, 10.0)])
def test_what_a_killed_server_has_started_is_ended(child: str, seconds: float) -> None:
    command = [sys.executable, "-c", PARENT, child]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        time.sleep(0.3)
        assert is_alive(pid)
        server.send_signal(signal.SIGKILL)
        server.wait()
        deadline = time.monotonic() + seconds
        while is_alive(pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)
