"""The script that the guide shows for CI, as it stands there, beside a registry that asks for passwords."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import imagekit
import programs
import tarkit

from layerstore import Images, Registry

PAGE = Path(__file__).resolve().parents[2] / "docs/guide/fleet.md"
MAKE = tarkit.file("bin/make", b"#!/bin/sh\n[ $1 = test ] && echo passed > /report\n", mode=0o755) + tarkit.end()


def script() -> str:
    blocks = re.findall(r"^```\w*\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    [found] = [text for text in blocks if "layerstore rw run" in text]
    return found


def test_the_script_for_ci_does_what_it_says(start, skopeo, images, open_store, room, settings):
    server = start(users={"ci": "a secret"})
    archive = room / "base.tar"
    archive.write_bytes(imagekit.tar_of(imagekit.docker([([programs.busybox(), MAKE], ["base:1"])])))
    skopeo.copy(f"docker-archive:{archive}", f"docker://{server.host}/team/base:1", "--dest-creds", "ci:a secret")

    text = script().replace("registry.example.com", server.host).replace("/var/tmp/layers", str(room / "layers"))
    login = {"auths": {server.host: {"auth": base64.b64encode(b"ci:a secret").decode()}}}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    more = {"PASSWORD": "a secret", "CI_COMMIT": "abc123", "DOCKER_AUTH_CONFIG": json.dumps(login), "PATH": path}
    done = subprocess.run(
        ["sh", "-ec", text], capture_output=True, text=True, env=programs.environment(settings, **more), check=False, cwd=room
    )
    assert (done.returncode, "a secret" in done.stdout + done.stderr) == (0, False), done.stderr
    assert done.stdout.splitlines()[-1] == server.tag("team/job", "abc123")

    with Registry(server.host, auth=("ci", "a secret")) as registry:
        image = images.pull(f"{server.host}/team/job:abc123", registry=registry)
        assert registry.tags("team/job") == ["abc123"]
    with open_store() as store, store.get(image.top) as layer, layer.open("report") as file:
        assert file.read() == b"passed\n"
    assert Images(open_store(room / "layers")).get(f"{server.host}/team/base:1").layers == image.layers[:-1]
