"""A supervisor from start to outcome, with scripted ranks."""

import os
import signal

import pytest

from tests.supervisor.conftest import Supervised, wait_until
from workbench.runs.job_file import processes_of


def test_a_run_that_finishes_leaves_an_outcome_and_no_socket(supervised: Supervised) -> None:
    supervised.start("connect", "step=7", "finish")
    status, outcome = supervised.ended()
    assert (status, outcome.state, outcome.step, outcome.attempt) == (0, "finished", 7, 1)
    states = [event["state"] for event in supervised.events()]
    assert states == ["starting", "training", "finished"]
    assert supervised.events()[-1]["event"] == "exit"
    assert not os.path.exists(supervised.job_file.socket)
    assert processes_of(supervised.job) == []
