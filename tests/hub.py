"""A Hub on this machine: folders behind the interface that huggingface_hub, transformers and datasets speak."""

import base64
import hashlib
import json
import re
import shutil
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

KINDS = {"model": "models", "dataset": "datasets"}
REPO = r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"
ROUTES = {
    rf"{REPO}(/revision/(?P<revision>[^/]+))?": "info",
    rf"{REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.*))?": "tree",
    rf"{REPO}/paths-info/(?P<revision>[^/]+)": "paths",
    rf"{REPO}/preupload/(?P<revision>[^/]+)": "preupload",
    rf"{REPO}/commit/(?P<revision>[^/]+)": "commit",
    r"/api/repos/create": "create",
    r"/api/validate-yaml": "valid",
    r"/(?P<kind>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)": "file",
}


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """A model or data set: commit -> folder, and branch or tag -> commit."""

    commits: dict[str, Path] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    access: str = "public"  # or private, or gated

    def folder(self, revision: str) -> tuple[str, Path] | None:
        commit = self.refs.get(revision, revision)
        return (commit, self.commits[commit]) if commit in self.commits else None


@dataclass
class Fault:
    """What happens to the next requests whose path matches: a status, or an answer that ends after so many bytes."""

    pattern: str
    status: int | None
    cut: int | None
    times: int
    headers: dict[str, str]


class Hub:
    """Serves repositories from folders; counts requests; fails as it is told to."""

    def __init__(self, root: Path) -> None:
        self.root, self.repositories = root, {}
        self.requests, self.faults, self.lock = [], [], threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, kind: str, name: str, folder: Path, *refs: str, access: str = "public") -> str:
        """Commit a copy of a folder to `main` or other refs; the commit is returned."""
        repository = self.repositories.setdefault((KINDS[kind], name), Repository(access=access))
        files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
        content = b"".join(str(file.relative_to(folder)).encode() + file.read_bytes() for file in files)
        commit = hashlib.sha1(content + name.encode() + bytes(len(repository.commits))).hexdigest()
        copy = self.root / commit
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        repository.commits[commit] = copy
        repository.refs |= dict.fromkeys(refs or ("main",), commit)
        return commit

    def reset(self) -> None:
        """Forget requests and faults."""
        self.requests.clear()
        self.faults.clear()

    def fail(self, pattern: str, status: int | None = None, *, cut: int | None = None, times: int = 10**6, **headers):
        self.faults.append(Fault(pattern, status, cut, times, {k.replace("_", "-"): v for k, v in headers.items()}))

    def fault(self, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None

    def fetched(self, pattern: str = "") -> list[str]:
        """Paths of the files that were sent, in order."""
        return [path for verb, path, _ in self.requests if verb == "GET" and re.search(f"/resolve/.*{pattern}", path)]


class Handler(BaseHTTPRequestHandler):
    """Answers one client."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length) if length else self.rfile_chunks()
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        self.broken = self.hub.fault(f"{self.command} {path}")
        if self.broken and self.broken.status:
            return self.send(self.broken.status, {"error": "as told"}, **self.broken.headers)
        for pattern, action in ROUTES.items():
            if match := re.fullmatch(pattern, url.path):
                parts = {name: unquote(part or "") for name, part in match.groupdict().items()}
                return getattr(self, action)(**parts)
        return self.send(404, {"error": "no such address"})

    do_HEAD = do_POST = do_GET

    def rfile_chunks(self) -> bytes:
        parts = []
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        return b"".join(parts)

    def send(self, status: int, content=b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers.setdefault("Content-Length", str(len(body)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.broken and self.broken.cut is not None:
            body, self.close_connection = body[: self.broken.cut], True
        self.wfile.write(body)

    def find(self, kind: str, id: str, revision: str) -> tuple[str, Path] | None:
        """Commit and folder; or an answer that says why not."""
        repository = self.hub.repositories.get((kind.strip("/") or "models", id))
        if repository is None or repository.access == "private":
            self.send(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif repository.access == "gated":
            self.send(403, {"error": "gated"}, X_Error_Code="GatedRepo")
        elif (found := repository.folder(revision or "main")) is None:
            self.send(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        else:
            return found
        return None

    def info(self, kind: str, id: str, revision: str) -> None:
        if found := self.find(kind, id, revision):
            commit, folder = found
            paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            sized = self.query.get("blobs", ["false"])[0].lower() in ("true", "1")
            files = [
                {"rfilename": str(path.relative_to(folder))} | ({"size": path.stat().st_size} if sized else {})
                for path in paths
            ]
            facts = {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
            self.send(200, {"_id": id, "id": id, "modelId": id, "sha": commit, "siblings": files} | facts)

    @staticmethod
    def entry(file: Path, folder: Path) -> dict:
        content = b"" if file.is_dir() else file.read_bytes()
        kind = "directory" if file.is_dir() else "file"
        return {"type": kind, "path": str(file.relative_to(folder)), "oid": git_hash(content), "size": len(content)}

    def tree(self, kind: str, id: str, revision: str, path: str) -> None:
        if found := self.find(kind, id, revision):
            folder = found[1]
            if not (folder / path).exists():
                return self.send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
            files = (folder / path).rglob("*") if recursive else (folder / path).iterdir()
            self.send(200, [self.entry(file, folder) for file in sorted(files)])

    def paths(self, kind: str, id: str, revision: str) -> None:
        if found := self.find(kind, id, revision):
            files = [found[1] / path for path in json.loads(self.body)["paths"]]
            self.send(200, [self.entry(file, found[1]) for file in files if file.exists()])

    def file(self, kind: str, id: str, revision: str, path: str) -> None:
        if not (found := self.find(kind, id, revision)):
            return
        commit, folder = found
        if not (folder / path).is_file():
            return self.send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        content = (folder / path).read_bytes()
        headers = {"ETag": f'"{git_hash(content)}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        if match := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            headers["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
            return self.send(206, content[start : end + 1], **headers)
        self.send(200, content, **headers)

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        self.hub.repositories.setdefault((KINDS[asked.get("type") or "model"], name), Repository())
        self.send(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def valid(self) -> None:
        self.send(200, {"errors": [], "warnings": []})

    def preupload(self, kind: str, id: str, revision: str) -> None:
        files = [file["path"] for file in json.loads(self.body)["files"]]
        answer = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
        self.send(200, {"files": answer, "commitOid": None})

    def commit(self, kind: str, id: str, revision: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        staged = self.hub.root / f"staged-{len(self.hub.requests)}"
        if found := self.hub.repositories[kind, id].folder(revision):
            shutil.copytree(found[1], staged)
        for line in lines:
            if line["key"] == "file":
                target = staged / line["value"]["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(base64.b64decode(line["value"]["content"]))
        commit = self.hub.add(kind.removesuffix("s"), id, staged, revision)
        url = f"{self.hub.url}/{id}/commit/{commit}"
        self.send(200, {"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})
