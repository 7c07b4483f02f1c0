"""Archives of images, drawn: every kind, several images, names that are none, entries that are no images; half of them spoiled."""

import random

import imagekit
import tarkit
from imagekit import BASE, MIDDLE, OCI, TOP, blob, descriptor, encode, tar_of

NOTHING = b""
LAYERS = [BASE, MIDDLE, TOP, NOTHING, tarkit.end()]
MACHINES = [{}, {}, {"architecture": "arm64"}, {"architecture": "arm", "variant": "v7"}, {"os": "windows"}, {"architecture": None}]
DOCKER_NAMES = ["a/b:1", "c", "ghcr.io/x/y:z", "localhost:5000/q:1"]
OCI_NAMES = [*DOCKER_NAMES, "v1", "v2", "1.0+a", "Upper:1", "", "sha256:abc"]
BAD = ["App:1", "", "<none>:<none>"]
CHANGES = {
    "created": ["", "yesterday", "2024-13-01T00:00:00Z"], "config": [[], {"Env": "x"}, {"Labels": {"a": 1}}, {"cmd": {}}],
    "history": [[1], [{"empty_layer": "x"}], None], "rootfs": [None, [], {"diff_ids": [1]}], "os": [1, ""], "Size": [1.5, 1 << 64],
}  # fmt: skip


class Draw:
    """An archive, drawn."""

    def __init__(self, seed: int):
        self.pick = random.Random(seed)
        self.files: dict[str, bytes] = {}
        self.kind = self.pick.choice(["docker", "named by digest", "both", "oci", "nested", "dir", "v1"])
        self.packed = self.pick.choice(["plain", "gzip", "zstd"]) if self.kind in ("oci", "nested", "dir") else "plain"
        self.some = [self.image() for _ in range(self.pick.choice([1, 1, 2, 3]))]
        getattr(self, "_" + self.kind.replace(" ", "_"))()
        self.links: dict[str, str] = {}
        self.again: list[tuple[str, bytes]] = []
        if self.pick.random() < 0.5:
            self.spoil()

    def image(self):
        layers = self.pick.choices(LAYERS, k=self.pick.choice([0, 1, 2, 3]))
        more = dict(self.pick.choice(MACHINES))
        if self.pick.random() < 0.1:
            key = self.pick.choice(list(CHANGES))
            more[key] = self.pick.choice(CHANGES[key])
        return layers, more, imagekit.config(layers, **more)

    def names(self, pool):
        names = self.pick.sample(pool, k=self.pick.choice([0, 1, 1, 2]))
        return [*names, self.pick.choice(BAD)] if self.pick.random() < 0.05 else names

    # -- kinds --

    def _docker(self, *, digests=False):
        manifest = []
        for layers, _, data in self.some:
            places = []
            for layer in layers:
                places.append(blob(layer)[0] if digests else f"{LAYERS.index(layer)}/layer.tar")
                self.files[places[-1]] = layer
            name = blob(data)[0] if digests else f"{imagekit.hexes(data)}.json"
            self.files[name] = data
            slash = "/" if self.pick.random() < 0.1 else ""
            manifest.append({"Config": slash + name, "RepoTags": self.names(DOCKER_NAMES) or None, "Layers": [slash + p for p in places]})
        self.files["manifest.json"] = encode(manifest)
        return manifest

    def _named_by_digest(self):
        self._docker(digests=True)

    def _both(self):
        manifest = self._docker(digests=True)
        entries = []
        for (layers, more, _), saved in zip(self.some, manifest, strict=True):
            for name in saved["RepoTags"] or [""]:
                entries.append(self.entry(layers, more, name and f"docker.io/{name}"))
        self.files = self.files | imagekit.layout(entries, {})

    def entry(self, layers, more, name=""):
        document, blobs = imagekit.manifest(layers, self.packed, **more)
        self.files |= blobs | dict([blob(document)])
        made = descriptor(document, OCI + "manifest.v1+json")
        if self.pick.random() < 0.6:
            named = {"os": more.get("os", "linux"), "architecture": more.get("architecture", "amd64"), "variant": more.get("variant")}
            made["platform"] = {key: value for key, value in named.items() if value}
        if name:
            key = "io.containerd.image.name" if "/" in name else "org.opencontainers.image.ref.name"
            made["annotations"] = {key: name}
        return made

    def artifact(self):
        kind = self.pick.choice(["chart", "sbom", "signature", "attestation", "unknown"])
        data, layer = {"signature": imagekit.config([b"{ }"])}.get(kind, b"{}"), b'{"x": 1}'
        types = {"chart": ("application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
                 "sbom": ("application/vnd.oci.empty.v1+json", "application/spdx+json"),
                 "signature": (OCI + "config.v1+json", "application/vnd.dev.cosign.simplesigning.v1+json"),
                 "attestation": (OCI + "config.v1+json", "application/vnd.in-toto+json"), "unknown": ("x/y", "z/z")}[kind]
        document = encode({"schemaVersion": 2, "config": descriptor(data, types[0]), "layers": [descriptor(layer, types[1])]})
        self.files |= dict(map(blob, (data, layer, document)))
        made = descriptor(document, OCI + "manifest.v1+json")
        if kind == "attestation":
            made["annotations"] = {"vnd.docker.reference.type": "attestation-manifest"}
        return made

    def entries(self):
        for layers, more, _ in self.some:
            for name in self.names(OCI_NAMES) or [""]:
                yield self.entry(layers, more, name)
        for _ in range(self.pick.choice([0, 0, 1, 2])):
            yield self.artifact()

    def _oci(self):
        entries = list(self.entries())
        self.pick.shuffle(entries)
        self.files |= imagekit.layout(entries, {})

    def _nested(self):
        index = encode({"schemaVersion": 2, "manifests": list(self.entries())})
        self.files |= dict([blob(index)])
        top = descriptor(index, OCI + "index.v1+json")
        name = self.pick.choice(OCI_NAMES)
        if name:
            top["annotations"] = {"org.opencontainers.image.ref.name": name}
        self.files |= imagekit.layout([top], {})

    def _dir(self):
        layers, more, _ = self.some[0]
        document, blobs = imagekit.manifest(layers, self.packed, **more)
        self.files = {name.rpartition("/")[2]: data for name, data in blobs.items()}
        self.files |= {"manifest.json": document, "version": b"Directory Transport Version: 1.1\n"}

    def _v1(self):
        self.files = imagekit.v1(self.some[0][0] or [BASE], "a/b:1")

    # -- what is wrong, or odd --

    def spoil(self):
        name = self.pick.choice(list(self.files))
        how = self.pick.choice(["drop", "cut", "change", "twice", "twice, other", "link", "directory", "empty", "document"])
        data = self.files[name]
        if how == "drop":
            del self.files[name]
        elif how == "cut":
            self.files[name] = data[: len(data) // 2]
        elif how == "change":
            self.files[name] = data.replace(b"a", b"b", 1)
        elif how == "empty":
            self.files[name] = b""
        elif how == "document":
            self.files[name] = b'{"a": 1}'
        elif how.startswith("twice"):
            self.again.append((name, data if how == "twice" else data + b" "))
        elif how == "link":
            self.files["real/" + name] = self.files.pop(name)
            self.links[name] = "../" * name.count("/") + "real/" + name
        elif "/" in name:                                # its directory is a link
            top = name.partition("/")[0]
            for each in [each for each in self.files if each.startswith(top + "/")]:
                self.files["real" + each[len(top):]] = self.files.pop(each)
            self.links[top] = "real"

    def tar(self) -> bytes:
        order = list(self.files.items())
        self.pick.shuffle(order)
        body = tar_of(dict(order), self.links)[:-1024]
        return body + b"".join(tarkit.with_pax_path(n, tarkit.file, d) if len(n) > 100 else tarkit.file(n, d) for n, d in self.again) + tarkit.end()
