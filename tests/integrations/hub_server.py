"""A hub on loopback: repositories that are made, committed to and read as the hub's own client does it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Hub:
    """``repos``: name -> commits, each (id, files). ``made``: the bodies of requests that make a repository."""

    def __init__(self) -> None:
        self.repos: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.made: list[dict[str, Any]] = []
        self.asked: list[str] = []
        self.tokens: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.read(body=False)

            def do_GET(self) -> None:
                self.read(body=True)

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.tokens.add(self.headers.get("Authorization", ""))
                path = urlsplit(self.path).path
                outer.asked.append(f"POST {path}")
                if path == "/api/repos/create":
                    body = json.loads(data)
                    outer.made.append(body)
                    name = f"{body['organization']}/{body['name']}" if body.get("organization") else body["name"]
                    outer.repos.setdefault(name, [])
                    return self.say({"url": f"{outer.url}/{name}", "name": name})
                if path == "/api/validate-yaml":
                    return self.say({"warnings": [], "errors": []})
                owner, name, what = path.removeprefix("/api/models/").split("/")[:3]
                if what == "preupload":
                    files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                             for f in json.loads(data)["files"]]  # fmt: skip
                    return self.say({"files": files})
                lines = [json.loads(line) for line in data.decode().splitlines()]
                values = [line["value"] for line in lines if line["key"] == "file"]
                sent = {value["path"]: base64.b64decode(value["content"]) for value in values}
                commit = outer.commit(f"{owner}/{name}", sent)
                return self.say({"commitOid": commit, "commitUrl": f"{outer.url}/{owner}/{name}/commit/{commit}",
                                 "success": True})  # fmt: skip

            def read(self, body: bool) -> None:
                path = unquote(urlsplit(self.path).path)
                outer.asked.append(f"GET {path}" if body else f"HEAD {path}")
                parts = path.strip("/").split("/")
                api = parts[:2] == ["api", "models"]
                repo = "/".join(parts[2:4] if api else parts[:2])
                revision = parts[5 if api else 3] if len(parts) > (5 if api else 3) else "main"
                commits = outer.repos.get(repo, [])
                found = next((c for c in reversed(commits) if revision in ("main", c[0])), None)
                if found is None:
                    return self.say({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
                commit, files = found
                if api and parts[4] == "tree":
                    return self.say(
                        [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in files.items()]
                    )
                if api:
                    siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
                    return self.say({"_id": "1", "id": repo, "sha": commit, "private": False, "tags": [],
                                     "downloads": 0, "likes": 0, "siblings": siblings})  # fmt: skip
                data = files["/".join(parts[4:])]
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                return self.say(data if body else None, 200, {"X-Repo-Commit": commit, "ETag": etag}, len(data))

            def say(self, value: Any, status: int = 200, headers: dict[str, str] | None = None, size: int = -1) -> None:
                data = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
                self.send_response(status)
                kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
                length = str(len(data) if size < 0 else size)
                for key, text in {"Content-Type": kind, "Content-Length": length, **(headers or {})}.items():
                    self.send_header(key, text)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def commit(self, repo: str, sent: dict[str, bytes]) -> str:
        """Put files on top of those that are there."""
        commits = self.repos.setdefault(repo, [])
        files = {**(commits[-1][1] if commits else {}), **sent}
        commit = hashlib.sha1(repr((len(commits), sorted(files.items()))).encode()).hexdigest()
        commits.append((commit, files))
        return commit

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
