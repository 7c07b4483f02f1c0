"""A registry in memory: manifests, blobs, uploads, tags and referrers as the distribution spec has them, on a scripted server.

`put` lays an image in it. What a well-behaved client never does is written to `complaints`, which a test's end looks at.
"""

import hashlib
import itertools
import json
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import imagekit
import tarkit
from imagekit import DOCKER, OCI
from scripted import Answer, Request, Server

import layerstore

KINDS = (OCI + "index.v1+json", OCI + "manifest.v1+json", DOCKER + "distribution.manifest.list.v2+json", DOCKER + "distribution.manifest.v2+json")
NAME = r"(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
ROUTES = [(re.compile(rf"/v2/{NAME}/{rest}"), kind) for rest, kind in (
    (r"manifests/(?P<ref>[^/]+)", "manifest"), (r"blobs/(?P<ref>\w+:\w+)", "blob"), (r"blobs/uploads/", "begin"),
    (r"blobs/uploads/(?P<ref>\w+)", "upload"), (r"tags/list", "tags"), (r"referrers/(?P<ref>\w+:\w+)", "referrers"),
)]  # fmt: skip


class Put(NamedTuple):
    """An image that is in a registry."""

    reference: str                  # by tag
    by_digest: str
    digest: str
    manifest: bytes
    id: str
    config: bytes
    layers: list[bytes]             # tars
    blobs: list[bytes]              # packed
    digests: list[str]              # of the blobs

    @property
    def chains(self) -> list[str]:
        return [tarkit.chain_id(*map(tarkit.diff_id, self.layers[: n + 1])) for n in range(len(self.layers))]

    def blob_path(self, number: int, name: str = "app") -> str:
        return f"/v2/{name}/blobs/{self.digests[number]}"


def error(status: int, code: str = "", message: str = "", **headers: str) -> Answer:
    body = imagekit.encode({"errors": [{"code": code, "message": message}]}) if code else b""
    return Answer(status, {"Content-Type": "application/json"} | {key.replace("_", "-"): value for key, value in headers.items()}, body)


class Shelf(Server):
    """guard: given a request, the 401 (or other answer) that it gets first, or None."""

    def __init__(self, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1", name: str = "", guard: Callable[[Request], Answer | None] | None = None):
        self.blobs: dict[str, dict[str, bytes]] = {}
        self.manifests: dict[str, dict[str, tuple[str, bytes]]] = {}        # by tag and by digest
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.states: dict[str, str] = {}
        self.guard = guard
        self.page = 1000
        self.filters = self.has_referrers = True
        self.tells_subject = True
        self.mounts = True
        self.strict = False             # of the Location that a session's end is asked for, where no answer was lost
        self.chunk_min = ""
        self.location = "absolute"
        self._numbers = itertools.count()
        super().__init__(tls, address, name)

    # ---- what is on it ----
    def add_blob(self, data: bytes, name: str = "app", algorithm: str = "sha256") -> str:
        digest = imagekit.digest(data, algorithm)
        self.blobs.setdefault(name, {})[digest] = data
        return digest

    def add_manifest(self, document: bytes | dict, name: str = "app", tag: str = "", kind: str = "", algorithm: str = "sha256") -> str:
        data = document if isinstance(document, bytes) else imagekit.encode(document)
        kind = kind or json.loads(data).get("mediaType", KINDS[1])
        digest = imagekit.digest(data, algorithm)
        for key in filter(None, (digest, tag)):
            self.manifests.setdefault(name, {})[key] = (kind, data)
        return digest

    def put(self, layers: Sequence[bytes], name: str = "app", tag: str = "1", packed: str = "gzip", *, docker_types: bool = False,
            edit: Callable[[dict], object] | None = None, blobs: Sequence[bytes] | None = None, algorithm: str = "sha256", **config) -> Put:
        """Lay an image here; edit: changes its manifest first; blobs: sent in place of the packed layers."""
        pack, *kinds = imagekit.PACKERS[packed]
        data = imagekit.config(layers, **config)
        packs = list(blobs) if blobs is not None else [pack(layer) for layer in layers]
        for each in (data, *packs):
            self.add_blob(each, name, algorithm)
        types = (DOCKER + "distribution.manifest.v2+json", DOCKER + "container.image.v1+json") if docker_types else (KINDS[1], OCI + "config.v1+json")
        document = {
            "schemaVersion": 2, "mediaType": types[0],
            "config": imagekit.descriptor(data, types[1]) | {"digest": imagekit.digest(data, algorithm)},
            "layers": [imagekit.descriptor(each, kinds[docker_types]) | {"digest": imagekit.digest(each, algorithm)} for each in packs],
        }  # fmt: skip
        if edit is not None:
            edit(document)
        manifest = imagekit.encode(document)
        digest = self.add_manifest(manifest, name, tag, types[0], algorithm)
        return Put(f"{self.host}/{name}:{tag}", f"{self.host}/{name}@{digest}", digest, manifest, imagekit.digest(data), data, list(layers), packs,
                   [imagekit.digest(each, algorithm) for each in packs])  # fmt: skip

    def put_index(self, entries: Sequence[tuple[Put, Mapping]], name: str = "app", tag: str = "all", **more) -> str:
        """An index of images that are here; its digest."""
        listed = [{"mediaType": KINDS[1], "digest": each.digest, "size": len(each.manifest)} | dict(extra) for each, extra in entries]
        return self.add_manifest({"schemaVersion": 2, "mediaType": KINDS[0], "manifests": listed} | more, name, tag)

    def ended_uploads(self, seconds: float = 2.0) -> bool:
        """Return True if the last session ends in this time."""
        until = time.monotonic() + seconds
        while self.uploads and time.monotonic() < until:
            time.sleep(0.01)
        return not self.uploads

    def tags(self, name: str) -> list[str]:
        return [key for key in self.manifests.get(name, {}) if ":" not in key]

    # ---- what no client does ----
    def look_at(self, request: Request) -> None:
        def complain(words: str) -> None:
            self.complaints.append(f"{request!r}: {words}")

        if request.header("User-Agent") != f"layerstore/{layerstore.__version__}":
            complain(f"User-Agent {request.header('User-Agent')!r}")
        if request.header("Accept-Encoding") != "identity":
            complain(f"Accept-Encoding {request.header('Accept-Encoding')!r}")
        if request.header("Cookie") or request.version != "HTTP/1.1" or "#" in request.target:
            complain("a cookie, a fragment, or another HTTP")
        names = [name.lower() for name, _ in request.headers if name.lower() != "accept"]
        if twice := {name for name in names if names.count(name) > 1}:
            complain(f"said twice: {twice}")
        if request.method == "PATCH" and request.header("Content-Type") != "application/octet-stream":
            complain(f"Content-Type {request.header('Content-Type')!r}")
        if request.method == "POST" and request.path.endswith("/blobs/uploads/") and (request.field("digest") or request.header("Content-Length") != "0"):
            complain("a blob goes by a POST alone")

    # ---- answers ----
    def respond(self, request: Request) -> Answer:
        if self.guard is not None and (refused := self.guard(request)) is not None:
            return refused
        if request.path == "/v2/":
            return Answer(200, {"Docker-Distribution-Api-Version": "registry/2.0"}, b"{}")
        for pattern, kind in ROUTES:
            if found := pattern.fullmatch(request.path):
                groups = found.groupdict()
                return getattr(self, f"_{kind}")(request, groups["name"], groups.get("ref", ""))
        return Answer(404, {}, b"404 page not found\n")

    def _manifest(self, request: Request, name: str, ref: str) -> Answer:
        if request.method == "PUT":
            return self._put_manifest(request, name, ref)
        found = self.manifests.get(name, {}).get(ref)
        if found is None:
            return error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        digest = ref if ":" in ref else imagekit.digest(found[1])
        return Answer(200, {"Content-Type": found[0], "Docker-Content-Digest": digest, "Etag": f'"{digest}"'}, found[1])

    def _put_manifest(self, request: Request, name: str, ref: str) -> Answer:
        data = request.body
        document = json.loads(data)
        if request.header("Content-Type") != document["mediaType"]:
            self.complaints.append(f"{request!r}: Content-Type is not the mediaType")
        named = [each["digest"] for each in [document["config"], *document["layers"]]] if "layers" in document else []
        here = self.blobs.get(name, {})
        if missing := [digest for digest in named if digest not in here]:
            return error(404, "MANIFEST_BLOB_UNKNOWN", f"blob unknown: {missing[0]}")
        digest = imagekit.digest(data)
        if ":" in ref and imagekit.digest(data, ref.partition(":")[0]) != ref:
            return error(400, "DIGEST_INVALID", "not that digest")
        self.add_manifest(data, name, ref if ":" not in ref else "", document["mediaType"])
        headers = {"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": digest}
        if "subject" in document and self.tells_subject:
            headers["OCI-Subject"] = document["subject"]["digest"]
        return Answer(201, headers)

    def _blob(self, request: Request, name: str, ref: str) -> Answer:
        data = self.blobs.get(name, {}).get(ref)
        if data is None:
            return error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": ref, "Etag": f'"{ref}"', "Accept-Ranges": "bytes"}
        return ranged(request, data, headers)

    def _place(self, name: str, id: str) -> dict[str, str]:
        """Where an upload goes on: another state each time, and only the newest is taken."""
        self.states[id] = f"s{next(self._numbers)}"
        path = f"/v2/{name}/blobs/uploads/{id}?_state={self.states[id]}%3D%3D&x=a+b"
        place = {"absolute": self.url + path, "relative": path, "bare": path.partition("?")[0]}[self.location]
        headers = {"Location": place, "Docker-Upload-UUID": id}
        size = len(self.uploads[id][1]) if id in self.uploads else 0
        if size:
            headers["Range"] = f"0-{size - 1}"
        return headers

    def _begin(self, request: Request, name: str, _: str) -> Answer:
        digest, source = request.field("mount"), request.field("from")
        if digest and self.mounts and digest in self.blobs.get(source, {}):
            self.blobs.setdefault(name, {})[digest] = self.blobs[source][digest]
            return Answer(201, {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})
        id = hashlib.md5(b"%d" % next(self._numbers)).hexdigest()
        self.uploads[id] = (name, bytearray())
        more = {"OCI-Chunk-Min-Length": self.chunk_min} if self.chunk_min else {}
        return Answer(202, self._place(name, id) | more)

    def _upload(self, request: Request, name: str, id: str) -> Answer:
        if id not in self.uploads:
            return error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        if self.location != "bare" and (request.method != "DELETE" or self.strict) and request.query.partition("&")[0] != f"_state={self.states[id]}%3D%3D":
            self.complaints.append(f"{request!r}: not the newest Location {self.states[id]}")
        _, data = self.uploads[id]
        if request.method == "GET":
            return Answer(204, self._place(name, id))
        if request.method == "DELETE":
            del self.uploads[id]
            return Answer(204)
        if begins := request.header("Content-Range"):
            first, last = map(int, begins.split("-"))
            if first != len(data):
                return Answer(416, self._place(name, id))
            if int(request.header("Content-Length")) != last - first + 1:
                self.complaints.append(f"{request!r}: {begins} and {request.header('Content-Length')} bytes")
        with self.receiving():
            for piece in request.pieces():
                data += piece
        if id not in self.uploads:          # its end was asked for meanwhile
            return error(404, "BLOB_UPLOAD_UNKNOWN")
        if request.method == "PATCH":
            return Answer(202, self._place(name, id))
        digest = request.field("digest")
        if imagekit.digest(bytes(data), digest.partition(":")[0]) != digest:
            return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        self.blobs.setdefault(name, {})[digest] = bytes(data)
        self.uploads.pop(id, None)
        return Answer(201, {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})

    def _tags(self, request: Request, name: str, _: str) -> Answer:
        if name not in self.manifests:
            return error(404, "NAME_UNKNOWN", "repository name not known to registry")
        tags, last = self.tags(name), request.field("last")
        begin = tags.index(last) + 1 if last else 0
        found = tags[begin : begin + self.page]
        headers = {"Content-Type": "application/json"}
        if begin + self.page < len(tags):
            headers["Link"] = f'</v2/{name}/tags/list?last={found[-1]}&n={self.page}>; rel="next"'
        return Answer(200, headers, imagekit.encode({"name": name, "tags": found}))

    def _referrers(self, request: Request, name: str, ref: str) -> Answer:
        if not self.has_referrers:
            return Answer(404, {}, b"404 page not found\n")
        wanted, listed = request.field("artifactType"), []
        for key, (kind, data) in self.manifests.get(name, {}).items():
            document = json.loads(data)
            if ":" in key and document.get("subject", {}).get("digest") == ref:
                artifact = document.get("artifactType") or document["config"]["mediaType"]
                if not wanted or artifact == wanted or not self.filters:
                    listed.append({"mediaType": kind, "digest": key, "size": len(data), "artifactType": artifact,
                                   "annotations": document.get("annotations", {})})  # fmt: skip
        headers = {"Content-Type": KINDS[0]} | ({"OCI-Filters-Applied": "artifactType"} if wanted and self.filters else {})
        return Answer(200, headers, imagekit.encode({"schemaVersion": 2, "mediaType": KINDS[0], "manifests": listed}))


def ranged(request: Request, data: bytes, headers: Mapping[str, str]) -> Answer:
    """The whole, or with a Range 206 or 416, as If-Range says."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.header("Range"))
    condition = request.header("If-Range")
    if asked is None or (condition and condition != headers.get("Etag")):
        return Answer(200, headers, data)
    first = int(asked[1])
    last = min(int(asked[2] or len(data)), len(data) - 1)
    if first >= len(data):
        return Answer(416, {"Content-Range": f"bytes */{len(data)}"})
    return Answer(206, dict(headers) | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1])
