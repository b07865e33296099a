"""A viewer that speaks the wire format by hand: what it sends is bytes, what it reads is JSON."""

import json
import os
import socket
from pathlib import Path
from typing import Any


class Viewer:
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(30)
        self._buffer = b""

    @classmethod
    def connect(cls, address: Path, **hello: object) -> "Viewer":
        viewer = cls.connect_silently(address)
        viewer.send(
            **{
                "type": "hello",
                "protocol": 1,
                "role": "viewer",
                "program": "test",
                "host": "test",
                "pid": os.getpid(),
            }
            | hello
        )
        viewer.hello = viewer.receive()
        return viewer

    @classmethod
    def connect_silently(cls, address: Path) -> "Viewer":
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(address))
        return cls(connection)

    def send(self, **message: object) -> None:
        self.send_line(json.dumps(message).encode())

    def send_line(self, line: bytes) -> None:
        self.socket.sendall(line + b"\n")

    def receive(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError("the supervisor closed the connection")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def receive_until(self, **wanted: object) -> dict[str, Any]:
        """Read until a message has these fields; give it."""
        while True:
            message = self.receive()
            if all(message.get(name) == value for name, value in wanted.items()):
                return message

    def ask(self, **request: object) -> dict[str, Any]:
        """Send a request and give the first answer to its id."""
        self.send(**request)
        return self.receive_until(id=request["id"])

    def is_closed(self) -> bool:
        """Read to the end; tell that it came."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionError:
            pass
        return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "Viewer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
