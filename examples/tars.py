"""Write the two layer tars that the reference's examples use: `python examples/tars.py [DIRECTORY]`.

Out: base.tar with etc/motd and bin/tool, and app.tar, which stands on it: app/main.py, and a whiteout of bin/tool. The
same bytes each time.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

TARS = {
    "base.tar": {"etc/motd": "hello\n", "bin/tool": "#!/bin/sh\n"},
    "app.tar": {"app/main.py": "print('hi')\n", "bin/.wh.tool": ""},
}


def write(place: Path) -> None:
    """Write both tars into a directory."""
    for name, files in TARS.items():
        with tarfile.open(place / name, "w") as tar:
            for path, text in files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text.encode()))


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
