"""A hub on loopback: the few answers that its libraries ask for, of data sets and models."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "c0ffee" * 6 + "c0ff"


class Hub(ThreadingHTTPServer):
    """Serves ``folder/owner/name``; ids that begin with ``gated`` want a token."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    with Hub(folder) as hub:
        thread = Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        """Be quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        path = self.path.split("?")[0].strip("/").replace("%2F", "/")
        self.server.requests.append(f"{self.command} {path}")
        if path.startswith(("api/datasets/", "api/models/")):
            self._api(path.split("/")[2:])
        else:
            self._file(path.removeprefix("datasets/").split("/"))

    def _file(self, parts: list[str]) -> None:
        file = self.server.folder.joinpath(*parts[:2], *parts[4:])
        if parts[0].startswith("gated"):
            self._send(401, b"", {"X-Error-Code": "GatedRepo"})
        elif not self.server.folder.joinpath(*parts[:2]).is_dir():
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif not file.is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            content = file.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self._send(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})

    def _api(self, parts: list[str]) -> None:
        folder = self.server.folder.joinpath(*parts[:2])
        if not folder.is_dir():
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif parts[2] == "revision":
            names = [str(entry["path"]) for entry in _entries(folder, folder, recursive=True)]
            siblings = [{"rfilename": name} for name in names]
            self._send_json({"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": siblings})
        elif parts[2] == "tree" and folder.joinpath(*parts[4:]).is_dir():
            recursive = "recursive=true" in self.path.lower()
            below = folder.joinpath(*parts[4:])
            self._send_json(_entries(folder, below, recursive=recursive))
        elif parts[2] == "paths-info":
            self._send_json(_entries(folder, folder, recursive=True))
        else:
            self._send(404, b"{}", {})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entries(folder: Path, below: Path, *, recursive: bool) -> list[dict[str, object]]:
    return [
        {
            "type": "file" if path.is_file() else "directory",
            "oid": "0" * 40,
            "path": str(path.relative_to(folder)),
            "size": path.stat().st_size if path.is_file() else 0,
        }
        for path in sorted(below.rglob("*") if recursive else below.iterdir())
    ]
