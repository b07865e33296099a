import queue

from workbench.control.messages import Evaluate, Pause, Resume, Save, Stop
from workbench.training.control_point import ControlPoint, Flag, Wish
from workbench.training.distributed import Ranks


def control_with(*wishes: Wish) -> ControlPoint:
    waiting: queue.SimpleQueue[Wish] = queue.SimpleQueue()
    for wish in wishes:
        waiting.put(wish)
    return ControlPoint(Ranks(), waiting)


def test_commands_of_one_kind_are_one_flag_with_all_their_numbers() -> None:
    control = control_with(Save(id=3), Evaluate(id=4), Save(id=5))
    assert control.agree() == Flag.SAVE | Flag.EVALUATE
    assert control.take(Flag.SAVE) == [3, 5]
    assert control.pending == Flag.EVALUATE
    assert control.agree() == Flag.EVALUATE, "what is not taken stays"


def test_a_resume_that_follows_a_pause_waits_until_the_pause_is_taken() -> None:
    control = control_with(Pause(id=1), Resume(id=2), Save(id=3))
    assert control.agree() == Flag.PAUSE
    assert control.agree() == Flag.PAUSE
    control.take(Flag.PAUSE)
    assert control.wait(0.0) == Flag.RESUME | Flag.SAVE


def test_stop_says_whether_to_save() -> None:
    assert control_with(Stop(id=1)).agree() == Flag.STOP
    without = control_with(Stop(id=1, save=False))
    assert without.agree() == Flag.STOP | Flag.STOP_WITHOUT_SAVE
    assert without.take(Flag.STOP) == [1]


def test_a_lost_supervisor_is_a_stop() -> None:
    assert control_with(None).agree() == Flag.STOP | Flag.ABANDONED


def test_waiting_ends_with_its_time() -> None:
    assert control_with().wait(0.01) == Flag.NONE


def test_flags_travel_as_one_integer() -> None:
    everything = Flag(0)
    for flag in Flag:
        everything |= flag
    assert Flag(int(everything)) == everything
    assert int(everything) < 2**63
