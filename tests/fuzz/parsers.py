"""Fuzz what reads a registry's texts, and the files with credentials: guided by the lines that an input reaches.

python tests/fuzz/parsers.py PLACE SECONDS [TARGET...]      each target for so long; corpus and crashes in PLACE
python tests/fuzz/parsers.py --replay TARGET FILE           one input again

A target is a function of bytes that raises if a promise is broken. The C core has fuzzers of its own (fuzz_*.c).
"""

from __future__ import annotations

import base64
import hashlib
import random
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NamedTuple

from layerstore.documents import references
from layerstore.errors import AuthenticationError, ImageError, RegistryError
from layerstore.registry import credentials, headers, helpers, listing, places, tokenserver

# Bytes of an input, and the seconds of processor time that one may take.
LONGEST = 20_000
SLOW = 2.0
SECRET = "s3cret-Word"
HOST = "registry.example.com:5000"
_FOLLOWED = ("/layerstore/registry/", "/layerstore/documents/")


class Target(NamedTuple):
    """What is fuzzed.

    check  raises if a promise is broken
    seeds  inputs to begin with
    words  what mutations put in
    """

    check: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]


def text_of(data: bytes) -> str:
    """Read bytes as an HTTP library reads a header."""
    return data.decode("latin-1")


def one_line(text: str, limit: int) -> None:
    assert text.isprintable() and len(text) <= limit, text[:500]


# ---- promises ----


def check_challenges(data: bytes) -> None:
    """Names are tokens in lower case, and what was read is read again from its own writing."""
    found = headers.challenges(text_of(data).split("\n"))
    for scheme, params in found:
        for name in (scheme, *params):
            assert re.fullmatch(r"[!#$%&'*+.^_`|~0-9a-z-]+", name), name
    written = [_written(each) for each in found]
    if sum(map(len, written)) <= headers.CHALLENGE_LIMIT:
        assert headers.challenges(written) == found == headers.challenges([", ".join(written)])


def _written(challenge: headers.Challenge) -> str:
    params = [f'{name}="{_ODD.sub(_escaped, value)}"' for name, value in challenge.params.items()]
    return f"{challenge.scheme} {', '.join(params)}"


_ODD = re.compile(r'["\\\\]')


def _escaped(found: re.Match[str]) -> str:
    return f"\\{found[0]}"


def check_content_range(data: bytes) -> None:
    text = text_of(data)
    found = headers.content_range(text)
    if found:
        start, end, total = found
        assert 0 <= start <= end < 1 << 63 and (total is None or end < total < 1 << 63)
        assert headers.content_range(f"bytes {start}-{end}/{'*' if total is None else total}") == found
    end_of = headers.upload_range(text)
    assert end_of is None or (0 <= end_of < 1 << 63 and headers.upload_range(f"0-{end_of}") == end_of)


def check_link(data: bytes) -> None:
    text = text_of(data)
    target = headers.next_link(text)
    assert target in text and "<" not in target and ">" not in target
    if target:
        assert headers.next_link(f'</other>; rel="prev", <{target}>; title="a, b"; rel="last next"') == target
    for named in (target, text):
        try:
            found = places.check_named(named, places.place_of(HOST)._replace(scheme="https"), "https://registry.example.com:5000/v2/a/tags/list")
        except RegistryError as err:
            one_line(str(err), 50_000)
            continue
        assert found.place.scheme == "https" and re.fullmatch(r"/[!-~]*", found.path), found
        assert not places.is_link_local(found.place.host) and not places.is_loopback(found.place.host)


def check_headers(data: bytes) -> None:
    """The smaller ones."""
    text = text_of(data)
    seconds = headers.retry_after(text, 784111777.0)
    assert seconds is None or seconds >= 0
    found = headers.warnings(text.split("\n"))
    assert sum(len(each.encode()) for each in found) <= 4096 and all(each and each.isprintable() for each in found)
    etag, kind = headers.strong_etag(text), headers.media_type(text)
    assert etag in text and not etag.startswith("W/") and re.fullmatch(r'(?:"[!-~]*")?', etag)
    assert kind == headers.media_type(f" {kind.upper()} ; charset=x") and re.fullmatch(r"(?:[!-~]+/[!-~]+)?", kind)


def check_errors(data: bytes) -> None:
    code, message = headers.errors(data)
    assert re.fullmatch(r"[A-Z_]{0,64}", code)
    one_line(message, 500)


def check_credentials(data: bytes) -> None:
    """A document gives credentials, nothing, or an error that does not quote it."""
    text = data.decode("utf-8", "surrogateescape")
    for key, repository in ((HOST, "a/b"), (credentials.HUB, "library/app")):
        try:
            known = credentials.find(key, repository, _ask, {"DOCKER_AUTH_CONFIG": text, "REGISTRY_AUTH_FILE": "/nonexistent"})
        except AuthenticationError as err:
            one_line(str(err), 300)
            assert str(err).startswith("cannot take credentials from DOCKER_AUTH_CONFIG: "), err
            told = "".join(traceback.format_exception(err))
            assert SECRET not in told and base64.b64encode(SECRET.encode()).decode() not in told
            assert err.__context__ is None
            continue
        assert known is None or (any(known.credentials) and re.fullmatch(r"Basic [A-Za-z0-9+/=]+", known.credentials.basic()))
    told = repr(credentials.sources(HOST, "a/b", {"DOCKER_AUTH_CONFIG": text, "REGISTRY_AUTH_FILE": "/nonexistent"}))
    assert SECRET not in told


def _ask(helper: str, server: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]+", helper) and server in (HOST, "https://index.docker.io/v1/")


def check_helper(data: bytes) -> None:
    known = None
    try:
        known = helpers.read(data, "docker-credential-tell", HOST)
    except AuthenticationError as err:
        one_line(str(err), 300)
        assert SECRET not in "".join(traceback.format_exception(err)) and err.__context__ is None
    assert known is None or any(known)


def check_token(data: bytes) -> None:
    """A token server's answer gives a token that a header may have, or an error that does not quote it."""
    place = places.place_of(HOST)._replace(scheme="https")
    realm = tokenserver.realm_of(headers.Challenge("bearer", {"realm": "https://auth.example.com/token"}), place)

    def exchange(*_: object) -> Any:
        return SimpleNamespace(status=200, headers=SimpleNamespace(get=lambda *_: ""), body=data, url="", host="")

    try:
        token = tokenserver.TokenServer(exchange, str).get(SimpleNamespace(check=None), realm, ["repository:a:pull"], None)
    except AuthenticationError as err:
        one_line(str(err), 300)
        assert SECRET not in "".join(traceback.format_exception(err)) and err.__context__ is None
        return
    assert re.fullmatch(r"[!-~]+", token.value) and isinstance(token.until, float)


def check_tags(data: bytes) -> None:
    """A page gives names that may stand in a URL, or an error."""

    def ask(*_: object, **__: object) -> Any:
        return SimpleNamespace(status=200, headers=SimpleNamespace(all=lambda _: [], get=lambda *_: ""), body=data, url="https://registry.example.com/v2/a", host="registry.example.com:443")

    session: Any = SimpleNamespace(ask=ask)
    named = references.Within("a", "", "sha256:" + "a" * 64)
    works: tuple[Callable[[], list[Any]], ...] = (lambda: listing.tags(SimpleNamespace(), session, "a"), lambda: listing.referrers(SimpleNamespace(), session, named, None))
    for work in works:
        try:
            found = work()
        except RegistryError as err:
            one_line(str(err), 300)
            continue
        assert all(re.fullmatch(r"\w[\w.-]{0,127}", each, re.A) if isinstance(each, str) else each.size >= 0 and re.fullmatch(r"sha\d+:[0-9a-f]+", each.digest) for each in found)


def check_reference(data: bytes) -> None:
    """A name is one that may stand in a URL, and is written as it is read."""
    text = data.decode("utf-8", "surrogateescape")
    readers: tuple[Callable[[], Any], ...] = (
        lambda: references.parse(text), lambda: references.parse_within(HOST, text), lambda: references.parse_within(credentials.HUB, text), lambda: references.parse_within("host", text),
    )  # fmt: skip
    for read in readers:
        try:
            found = read()
        except ImageError as err:
            one_line(str(err), 12 * len(text) + 300)
            continue
        path = found.path if isinstance(found, references.Within) else references.split_domain(found.name)[1]
        assert re.fullmatch(r"[a-z0-9._/-]+", path) and ".." not in path and "//" not in path and not path.startswith("/")
        assert re.fullmatch(r"(?:\w[\w.-]{0,127})?", found.tag, re.A) and re.fullmatch(r"(?:sha(?:256|384|512):[0-9a-f]{64,128})?", found.digest)
        if isinstance(found, references.Reference):
            assert references.parse(str(found)) == found and re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", references.split_domain(found.name)[0])


def encoded(text: str) -> bytes:
    return base64.b64encode(text.encode())


JSON = (b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"1e9", b"-1", b"\\u0000", b"\\ud800", b"NaN", b"1" * 30, b"9" * 400, b"9" * 5000, b'":"', b'","', SECRET.encode())
HTTP = (b" ", b",", b"=", b'"', b"\\", b";", b"\t", b"\n", b"\0", b"\xff", b"<", b">", b"-", b"/", b"*", b"0", b"9" * 20)
DIGEST = b"sha256:" + b"a" * 64

TARGETS = {
    "challenges": Target(check_challenges, (
        b'Bearer realm="https://auth.example.com/token",service="s",scope="repository:a/b:pull,push"', b'Basic realm="x", Bearer realm=y\nNegotiate YWJj==, Digest qop="a\\"b"',
        b"NTLM", b'Basic realm="cut',
    ), (*HTTP, b"Bearer ", b"Basic ", b"realm=", b'error="insufficient_scope"', b"scope=")),
    "content_range": Target(check_content_range, (b"bytes 0-9/10", b"bytes 5-9/*", b"bytes */10", b"0-1023", b"bytes=0-7"), (*HTTP, b"bytes ", b"9223372036854775807")),
    "link": Target(check_link, (
        b'</v2/a/tags/list?n=1&last=b>; rel="next"', b'<https://x/>; title="a, b"; rel="prev next", </b>;rel=next', b"https://registry.example.com:5000/v2/", b"//169.254.169.254/x", b"?n=2",
        b"https://[::ffff:127.0.0.1]:80/x#y",
    ), (*HTTP, b"rel=", b'"next"', b"next", b"http://", b"https://", b"//", b"@", b"[", b"]", b"%00", b"127.1", b"0xa9fea9fe", b"localhost", b"#", b"?")),
    "headers": Target(check_headers, (
        b"120", b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994", b'299 - "old \\"image\\"", 299 a.example "two" "Sun, 06 Nov 1994 08:49:37 GMT"', b'"etag"', b'W/"etag"',
        b"application/vnd.oci.image.index.v1+json; charset=utf-8",
    ), (*HTTP, b"299 - ", b"GMT", b"+9999", b"Feb", b"W/")),
    "errors": Target(check_errors, (b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":null}]}', b'{"errors":[{"message":"\\u001b[31m"},{"code":"A"}]}'), (*JSON, b'"errors"', b'"code"', b'"message"')),
    "credentials": Target(check_credentials, (
        b'{"auths":{"registry.example.com:5000":{"auth":"' + encoded(f"user:{SECRET}") + b'"}}}', b'{"auths":{"https://registry.example.com:5000/v1/":{"username":"u","password":"' + SECRET.encode() + b'"}}}',
        b'{"auths":{"registry.example.com:5000/a":{"identitytoken":"' + SECRET.encode() + b'"},"https://index.docker.io/v1/":{"registrytoken":"x"}},"credsStore":"pass"}',
        b'{"credHelpers":{"registry.example.com:5000":"tell","docker.io":"tell"},"auths":{"docker.io":{}}}',
    ), (*JSON, b'"auths"', b'"auth"', b'"username"', b'"credsStore"', b'"credHelpers"', b'"registry.example.com:5000"', encoded(SECRET), encoded(f"a:{SECRET}\0"), b"/a/b", b"../")),
    "helper": Target(check_helper, (b'{"ServerURL":"x","Username":"u","Secret":"' + SECRET.encode() + b'"}\n', b'{"Username":"<token>","Secret":"' + SECRET.encode() + b'"}'), (*JSON, b'"Username"', b'"Secret"', b'"<token>"')),
    "token": Target(check_token, (b'{"token":"' + SECRET.encode() + b'","expires_in":300}', b'{"access_token":"' + SECRET.encode() + b'","refresh_token":"r","issued_at":"x"}'), (*JSON, b'"token"', b'"access_token"', b'"expires_in"', b'"refresh_token"')),
    "tags": Target(check_tags, (
        b'{"name":"a","tags":["1","latest"]}', b'{"tags":null}', b'{"manifests":[{"mediaType":"m","digest":"' + DIGEST + b'","size":7,"artifactType":"x/y","annotations":{"k":"v"}}]}',
        b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}',
    ), (*JSON, b'"tags"', b'"manifests"', b'"digest"', b'"size"', DIGEST)),
    "reference": Target(check_reference, (b"app", b"user/app:1", b"registry.example.com:5000/a/b:1@" + DIGEST, b"localhost/a", b"docker.io/library/app", b"[::1]:5000/a", b"index.docker.io/a@sha512:" + b"b" * 128, b"a.b/c__d--e"), (
        b"/", b":", b"@", b".", b"..", b"_", b"__", b"-", b"A", b"%", b"\0", b"\r\n", b" ", b"localhost/", b"docker.io/", b"library/", HOST.encode() + b"/", DIGEST, b"\xc3\xa9", b"x" * 130, b"http://",
    )),
}  # fmt: skip


# ---- inputs ----


def mutated(rng: random.Random, corpus: list[bytes], words: tuple[bytes, ...]) -> bytes:
    """An input made of one or two others."""
    data = bytearray(rng.choice(corpus))
    for _ in range(1 << rng.randrange(4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + 1 + int(rng.expovariate(0.2)))
        what = rng.randrange(7)
        if what == 0:
            data[at:end] = b""
        elif what == 1:
            data[at:at] = rng.choice(words)
        elif what == 2:
            data[at:end] = rng.choice(words)
        elif what == 3 and at < len(data):
            data[at] = rng.randrange(256)
        elif what == 4:
            other = rng.choice(corpus)
            start = rng.randrange(len(other) + 1)
            data[at:end] = other[start : start + rng.randrange(64)]
        elif what == 5:
            data[at:at] = bytes(data[at:end]) * (1 << rng.randrange(10 if rng.random() < 0.05 else 3))
        else:
            del data[at + (len(data) - at) // 2 :]
    return bytes(data[:LONGEST])


class Reached:
    """The steps from line to line of the package that inputs have reached."""

    def __init__(self) -> None:
        self.steps: set[tuple[object, int, int]] = set()

    def run(self, check: Callable[[bytes], object], data: bytes) -> bool:
        """Run an input. Return True if it reached a step that none did before."""
        before = len(self.steps)
        sys.settrace(self._entered)
        try:
            check(data)
        finally:
            sys.settrace(None)
        return len(self.steps) > before

    def _entered(self, frame: FrameType, event: str, argument: object) -> Any:
        if not any(part in frame.f_code.co_filename for part in _FOLLOWED):
            return None
        code, last = frame.f_code, 0

        def stepped(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal last
            self.steps.add((code, last, frame.f_lineno))
            last = frame.f_lineno
            return stepped

        return stepped


class BrokenPromise(Exception):  # noqa: N818
    """An input that breaks a promise of its target."""

    def __init__(self, data: bytes, why: str) -> None:
        super().__init__(f"{data[:300]!r}\n{why}")
        self.data = data


def judge(target: Target, data: bytes, reached: Reached | None = None) -> bool:
    """Run one input. Return True if it is worth keeping. Raises BrokenPromise."""
    began = time.process_time()
    try:
        is_new = reached.run(target.check, data) if reached else bool(target.check(data))
    except (Exception, RecursionError) as err:
        raise BrokenPromise(data, "".join(traceback.format_exception(err))[-3000:]) from None
    if time.process_time() - began > SLOW:
        raise BrokenPromise(data, f"it took {time.process_time() - began:.1f} s")
    return is_new


def fuzz(target: Target, corpus: list[bytes], rng: random.Random, more: Callable[[int], bool]) -> Iterator[bytes]:
    """Run inputs while more(number of inputs so far). Give those that reached something new."""
    reached, number = Reached(), 0
    for seed in corpus:
        judge(target, seed, reached)
    while more(number):
        data = mutated(rng, corpus, target.words)
        number += 1
        if judge(target, data, reached):
            corpus.append(data)
            yield data


def main(place: str, seconds: str, *names: str) -> int:
    failed, seed = 0, random.SystemRandom().randrange(1 << 32)
    for name, target in TARGETS.items():
        if names and name not in names:
            continue
        kept, crashes = Path(place, "corpus", f"parsers_{name}"), Path(place, "crashes", f"parsers_{name}")
        for folder in (kept, crashes):
            folder.mkdir(parents=True, exist_ok=True)
        corpus = [*target.seeds, *(path.read_bytes() for path in sorted(kept.iterdir()))]
        until, count = time.monotonic() + float(seconds), 0

        def more(number: int, until: float = until) -> bool:
            nonlocal count
            count = number
            return time.monotonic() < until

        try:
            for data in fuzz(target, corpus, random.Random(seed), more):
                (kept / hashlib.sha1(data).hexdigest()).write_bytes(data)
        except BrokenPromise as broken:
            failed = 1
            path = crashes / hashlib.sha1(broken.data).hexdigest()
            path.write_bytes(broken.data)
            print(f"parsers {name} FAILED: {broken}\nthis does it again: {sys.argv[0]} --replay {name} {path}", file=sys.stderr)
        else:
            print(f"parsers {name}: {count} inputs, {len(corpus)} kept, nothing found", file=sys.stderr)
    return failed


if __name__ == "__main__":
    if sys.argv[1] == "--replay":
        judge(TARGETS[sys.argv[2]], Path(sys.argv[3]).read_bytes())
    else:
        sys.exit(main(*sys.argv[1:]))
