"""A rank that does what its script says, for what the real trainer cannot be made to do.

``python scripted_rank.py RUN ACTION…`` runs its actions in order; ``connect`` makes it the
publisher of the job in RUN/job.json. ``serve`` takes steps and answers commands until a stop.
"""

import faulthandler
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path


class Rank:
    def __init__(self, run: Path) -> None:
        self.run = run
        self.job = json.loads((run / "job.json").read_text())
        self.socket = socket.socket(socket.AF_UNIX)
        self.buffer = b""
        self.step = 0

    def connect(self) -> None:
        self.socket.connect(self.job["socket"])
        self.send(
            type="hello",
            protocol=1,
            role="publisher",
            program="scripted",
            host=socket.gethostname(),
            pid=os.getpid(),
            job=self.job["job"],
        )
        assert self.receive()["role"] == "supervisor"

    def send(self, **message: object) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict:
        while b"\n" not in self.buffer:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def progress(self, state: str) -> None:
        self.send(type="progress", state=state, step=self.step, max_steps=100, idle_seconds=0.0)

    def leave(self, state: str, **more: object) -> None:
        self.send(type="leaving", state=state, step=self.step, **more)

    def metrics(self) -> None:
        record = {"time": time.time(), "attempt": self.job["attempt"], "step": self.step}
        with (self.run / "metrics.jsonl").open("ab") as file:
            offset = file.tell()
            file.write(json.dumps(record).encode() + b"\n")
        self.send(type="metrics", offset=offset, record=record)

    def serve(self) -> None:
        """Take a step per command; save, evaluate, pause, resume are answered, a stop ends it."""
        self.progress("training")
        while True:
            try:
                command = self.receive()
            except EOFError:
                (self.run / "lost_supervisor").write_text("saved")
                return
            self.step += 1
            self.metrics()
            name, number = command["type"], command["id"]
            if name == "save":
                saved = {
                    "step": self.step,
                    "path": f"checkpoints/checkpoint-{self.step}",
                    "bytes": 10,
                    "seconds": 0.5,
                }
                record = {"time": time.time(), "event": "checkpoint", "attempt": 1, **saved}
                self.send(type="event", offset=0, record=record)
                self.send(type="done", id=number, result={"kind": "saved", **saved})
            elif name == "evaluate":
                self.send(
                    type="failed", id=number, reason="data", message="no rows", remedy="add rows"
                )
            elif name in ("pause", "resume"):
                self.progress("paused" if name == "pause" else "training")
                held = {"kind": "held", "step": self.step, "paused": name == "pause"}
                self.send(type="done", id=number, result=held)
            elif name == "stop":
                self.progress("stopping")
                self.leave("stopped")
                return


def wedge() -> None:
    """Hold the interpreter lock in C code for good: no Python handler ever runs again."""
    import re

    sys.stdout.write("wedged\n")
    sys.stdout.flush()
    re.match(r"(a+)+$", "a" * 64 + "b")


def main() -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    rank = Rank(Path(sys.argv[1]))
    for action in sys.argv[2:]:
        name, _, value = action.partition("=")
        match name:
            case "wait_for":
                while not Path(value).exists():
                    time.sleep(0.01)
            case "connect":
                rank.connect()
            case "serve":
                rank.serve()
            case "step":
                rank.step = int(value)
                rank.progress("training")
            case "state":
                rank.progress(value)
            case "raw":
                rank.socket.sendall(value.encode() + b"\n")
            case "read_to_end":
                while rank.socket.recv(4096):
                    pass
            case "finish":
                rank.leave("finished")
            case "fail":
                rank.leave("failed", reason=value, message="it went wrong", remedy="mend it")
            case "print":
                os.write(1, value.encode() + b"\n")
            case "kill":
                os.kill(os.getpid(), getattr(signal, value))
            case "ignore":
                signal.signal(getattr(signal, value), signal.SIG_IGN)
            case "orphan":
                # A grandchild that outlives its parent, in a session of its own.
                if os.fork() == 0:
                    os.setsid()
                    time.sleep(600)
            case "wedge":
                wedge()
            case "wait":
                signal.pause()
            case "exit":
                sys.exit(int(value))
            case _:
                raise SystemExit(f"no action {name}")


main()
