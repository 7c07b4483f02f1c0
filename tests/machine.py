"""What this machine has; where it lacks something a test is skipped aloud, and under CI that is a failure."""

import os
import shutil

import pytest


def needs(*what: str, there: object = None) -> None:
    """These programs, or what `there` says is there."""
    missing = [name for name in what if not (shutil.which(name) if there is None else there)]
    if missing:
        reason = f"NOT TESTED: no {', '.join(missing)} on this machine (make system-test installs it; under CI this fails)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
