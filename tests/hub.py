"""A server that speaks as much of the Hugging Face hub as `huggingface_hub` asks for when it fetches a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Served:
    """A model `name` whose revisions are the folders of `root`. got: (revision, file) of each GET.

    cut: files of which only half is sent, and told; watch: a folder in which files of weights are counted meanwhile.
    """

    def __init__(self, root: Path, name: str = "someone/tiny") -> None:
        self.root, self.name = root, name
        self.got: list[tuple[str, str]] = []
        self.cut: set[str] = set()
        self.watch: Path | None = None
        self.most = 0
        self.url = ""

    def commits(self) -> dict[str, str]:
        return {hashlib.sha1(p.name.encode()).hexdigest(): p.name for p in sorted(self.root.iterdir())}

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        path = path.partition("?")[0].strip("/")
        parts = path.split("/")
        if path == f"api/models/{self.name}/refs":
            branches = [{"name": r, "ref": f"refs/heads/{r}", "targetCommit": c} for c, r in self.commits().items()]
            return as_json({"branches": branches, "tags": [], "converts": []})
        if path.startswith(f"api/models/{self.name}/revision/") and parts[-1] in self.commits():
            folder = self.root / self.commits()[parts[-1]]
            files = [self.file(p) for p in sorted(folder.iterdir())]
            return as_json({"id": self.name, "modelId": self.name, "sha": parts[-1], "siblings": files})
        if path.startswith(f"{self.name}/resolve/") and parts[3] in self.commits():
            file = self.root / self.commits()[parts[3]] / parts[4]
            if file.is_file():
                body = file.read_bytes()
                etag = f'"{hashlib.sha256(body).hexdigest()}"'
                if file.name in self.cut:
                    body = body[: len(body) // 2]
                return 200, {"X-Repo-Commit": parts[3], "ETag": etag}, body
        code = "RepoNotFound" if self.name not in path else "EntryNotFound"
        return 404, {"X-Error-Code": code, "X-Error-Message": code}, b""

    @staticmethod
    def file(path: Path) -> dict[str, Any]:
        body = path.read_bytes()
        entry: dict[str, Any] = {"rfilename": path.name, "size": len(body), "blobId": hashlib.sha1(body).hexdigest()}
        if path.suffix in (".safetensors", ".bin"):
            entry["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
        return entry


def as_json(content: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


@contextmanager
def serving(model: Served) -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(True)

        def do_HEAD(self) -> None:
            self.reply(False)

        def reply(self, whole: bool) -> None:
            status, headers, body = model.answer(self.path)
            if whole and "/resolve/" in self.path:
                commit, file = self.path.split("/resolve/")[1].split("/")
                model.got.append((model.commits().get(commit, commit), file))
                if model.watch:
                    model.most = max(model.most, len(list(model.watch.rglob("*.safetensors"))))
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if whole:
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    model.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield model
    finally:
        server.shutdown()
        server.server_close()
