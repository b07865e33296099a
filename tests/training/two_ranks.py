"""What two ranks do together: agree on commands, save, and fail together. Started by torchrun."""

import queue
import resource
import sys

from tests.training.killed_saves import content_of, state_of
from workbench.control.messages import Evaluate, Save, Stop
from workbench.runs.layout import RunFolder
from workbench.training import checkpoint, distributed
from workbench.training.control_point import ControlPoint, Flag, Wish


def main() -> None:
    ranks = distributed.join("cpu")
    run = RunFolder(sys.argv[1])

    wishes: queue.SimpleQueue[Wish] = queue.SimpleQueue()
    control = ControlPoint(ranks, wishes)
    assert control.agree() == Flag.NONE
    if ranks.rank == 0:
        wishes.put(Save(id=4))
        wishes.put(Evaluate(id=5))
    assert control.agree() == Flag.SAVE | Flag.EVALUATE
    assert control.take(Flag.SAVE) == ([4] if ranks.rank == 0 else [])
    if ranks.rank == 0:
        wishes.put(Stop(id=6, save=False))
    assert control.wait(5.0) == Flag.EVALUATE | Flag.STOP | Flag.STOP_WITHOUT_SAVE

    saved = checkpoint.save(run, content_of(1), state_of(1), ranks)
    assert saved.path == run.checkpoint(1)
    if ranks.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
    try:
        checkpoint.save(run, content_of(2), state_of(2), ranks)
    except checkpoint.SaveError as error:
        sys.stdout.write(f"refused: {error.what}\n")
        sys.stdout.flush()
    distributed.leave()


if __name__ == "__main__":
    main()
