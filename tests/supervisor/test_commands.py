"""Commands over a real socket: numbers, duplicates, refusals, and what the end leaves pending."""

import time

from tests.supervisor.conftest import Supervised, wait_until
from workbench.runs.job_file import processes_of


def command_events(supervised: Supervised) -> list[tuple[int, str, str]]:
    events = [event for event in supervised.events() if event["event"] == "command"]
    return [(event["command"], event["name"], event["phase"]) for event in events]


def test_a_save_is_accepted_then_done_and_both_are_in_the_events(supervised: Supervised) -> None:
    supervised.start("connect", "serve")
    supervised.wait_for_state("training")
    with supervised.connect() as viewer:
        accepted = viewer.ask(type="save", id=7)
        assert accepted == {"type": "accepted", "id": 7, "command": 1, "when": "next step"}
        done = viewer.receive_until(type="done")
        assert (done["id"], done["command"]) == (7, 1)
        assert done["result"]["kind"] == "saved"
        assert command_events(supervised) == [(1, "save", "accepted"), (1, "save", "done")]
        assert viewer.ask(type="status", id=8)["checkpoint"] == done["result"]["path"]


def test_commands_before_the_first_step_wait_for_it(supervised: Supervised) -> None:
    gate = supervised.run.path / "gate"
    supervised.start(f"wait_for={gate}", "connect", "serve")
    with supervised.connect() as viewer:
        assert viewer.ask(type="save", id=1)["when"] == "first step"
        assert viewer.ask(type="pause", id=2)["when"] == "first step"
        status = viewer.ask(type="status", id=3)
        assert (status["state"], status["idle_seconds"]) == ("starting", None)
        assert [pending["name"] for pending in status["pending"]] == ["save", "pause"]
        gate.touch()
        assert viewer.receive_until(type="done", id=1)["result"]["kind"] == "saved"
        assert viewer.receive_until(type="done", id=2)["result"] == {
            "kind": "held",
            "step": 2,
            "paused": True,
        }


def test_a_duplicate_shares_the_number_and_both_are_answered(supervised: Supervised) -> None:
    gate = supervised.run.path / "gate"
    supervised.start(f"wait_for={gate}", "connect", "serve")
    with supervised.connect() as first, supervised.connect() as second:
        assert first.ask(type="save", id=1)["command"] == 1
        assert second.ask(type="save", id=44)["command"] == 1
        gate.touch()
        assert first.receive_until(type="done")["id"] == 1
        assert second.receive_until(type="done")["id"] == 44
        assert command_events(supervised) == [(1, "save", "accepted"), (1, "save", "done")]


def test_what_the_state_does_not_allow_is_refused(supervised: Supervised) -> None:
    supervised.start("connect", "step=121", "read_to_end")
    supervised.wait_for_state("training")
    with supervised.connect() as viewer:
        refused = viewer.ask(type="resume", id=1)
        assert (refused["type"], refused["reason"]) == ("failed", "not_paused")
        assert viewer.ask(type="stop", id=2)["type"] == "accepted"
        for request, name in enumerate(("save", "evaluate", "pause", "resume"), start=3):
            refused = viewer.ask(type=name, id=request)
            assert (refused["reason"], refused["message"]) == (
                "stopping",
                "the job is stopping at step 121",
            )
        assert viewer.ask(type="stop", id=9, save=False)["reason"] == "stopping"
        assert viewer.ask(type="stop", id=10)["command"] == 1


def test_a_stop_before_the_first_step_ends_at_once(supervised: Supervised) -> None:
    supervised.start("connect", "state=loading", "wait")
    supervised.wait_for_state("loading")
    with supervised.connect() as viewer:
        assert viewer.ask(type="stop", id=1)["when"] == "now"
        done = viewer.receive_until(type="done")
        assert (done["result"]["kind"], done["result"]["state"]) == ("ended", "stopped")
        assert supervised.run.outcome.exists(), "told before it was on disk"
    assert supervised.ended()[0] == 0


def test_a_stop_is_done_only_when_the_last_process_is_gone(supervised: Supervised) -> None:
    supervised.start("connect", "serve")
    supervised.wait_for_state("training")
    with supervised.connect() as viewer:
        assert viewer.ask(type="stop", id=1)["when"] == "next step"
        done = viewer.receive_until(type="done")
        assert done["result"] == {
            "kind": "ended",
            "state": "stopped",
            "step": 1,
            "checkpoint": None,
            "killed": 0,
        }
        assert processes_of(supervised.job) == [supervised.job_file.pid]


def test_the_end_fails_what_is_pending(supervised: Supervised) -> None:
    gate = supervised.run.path / "gate"
    supervised.start("connect", "step=5", f"wait_for={gate}", "finish")
    supervised.wait_for_state("training")
    with supervised.connect() as viewer:
        assert viewer.ask(type="save", id=1)["type"] == "accepted"
        gate.touch()
        failed = viewer.receive_until(type="failed")
        assert (failed["id"], failed["command"], failed["reason"]) == (1, 1, "ended")
        assert viewer.ask(type="status", id=2)["state"] == "finished"
        assert viewer.ask(type="save", id=3)["reason"] == "ended"


def test_a_stop_whose_job_fails_has_failed(supervised: Supervised) -> None:
    gate = supervised.run.path / "gate"
    supervised.start("connect", "step=5", f"wait_for={gate}", "fail=save_failed", "exit=1")
    supervised.wait_for_state("training")
    with supervised.connect() as viewer:
        assert viewer.ask(type="stop", id=1)["type"] == "accepted"
        gate.touch()
        failed = viewer.receive_until(type="failed")
        assert (failed["reason"], failed["remedy"]) == ("save_failed", "mend it")


def test_abort_ends_a_rank_that_is_wedged_in_c_code_and_logs_its_stack(
    supervised: Supervised,
) -> None:
    supervised.start("connect", "step=1", "wedge")
    wait_until(
        lambda: supervised.run.log.exists() and b"wedged" in supervised.run.log.read_bytes(),
        "the wedge",
    )
    with supervised.connect() as viewer:
        assert viewer.ask(type="abort", id=1)["when"] == "now"
        done = viewer.receive_until(type="done")
        assert done["result"]["state"] == "aborted"
    assert processes_of(supervised.job) in ([], [supervised.job_file.pid])
    assert "in wedge" in supervised.run.log.read_text(), "no stack in the log"
    assert supervised.ended()[0] == 1


def test_abort_ends_deaf_and_stopped_ranks_within_15_seconds(supervised: Supervised) -> None:
    supervised.start("ignore=SIGTERM", "orphan", "connect", "step=1", "kill=SIGSTOP", "wait")
    supervised.wait_for_state("training")
    with supervised.connect() as viewer:
        begin = time.monotonic()
        viewer.send(type="abort", id=1)
        done = viewer.receive_until(type="done")
        seconds = time.monotonic() - begin
    assert done["result"]["state"] == "aborted"
    assert done["result"]["killed"] == 2
    assert seconds < 15.0
    assert processes_of(supervised.job) in ([], [supervised.job_file.pid])


def test_the_supervisor_answers_while_its_rank_is_frozen(supervised: Supervised) -> None:
    supervised.start("connect", "step=9", "kill=SIGSTOP")
    supervised.wait_for_state("training")
    with supervised.connect() as viewer:
        first = viewer.ask(type="status", id=1)
        wait_until(
            lambda: viewer.ask(type="status", id=2)["idle_seconds"] > first["idle_seconds"] + 0.1,
            "growing idle seconds",
        )
        assert viewer.ask(type="status", id=3)["state"] == "training"
        assert viewer.ask(type="save", id=4)["type"] == "accepted"


def test_an_abort_after_an_accepted_stop_is_taken(supervised: Supervised) -> None:
    supervised.start("connect", "step=2", "read_to_end")
    supervised.wait_for_state("training")
    with supervised.connect() as viewer:
        viewer.ask(type="stop", id=1)
        assert viewer.ask(type="abort", id=2)["type"] == "accepted"
        results = {}
        while len(results) < 2:
            message = viewer.receive_until(type="done")
            results[message["id"]] = message["result"]["state"]
        assert results == {1: "aborted", 2: "aborted"}


def test_a_command_of_rank_0s_own_words_failing_is_passed_on(supervised: Supervised) -> None:
    supervised.start("connect", "serve")
    supervised.wait_for_state("training")
    with supervised.connect() as viewer:
        viewer.send(type="evaluate", id=5)
        failed = viewer.receive_until(type="failed")
        assert (failed["id"], failed["reason"], failed["remedy"]) == (5, "data", "add rows")
        assert viewer.ask(type="status", id=6)["state"] == "training"
        assert command_events(supervised)[-1] == (1, "evaluate", "failed")
