"""The command that runs layerstore's command line as a program of its own."""

import sys

_WITHOUT_RICH = "import sys; sys.modules['rich'] = None; from layerstore.cli.main import program; program()"


def command(rich: bool = True) -> list[str]:
    """rich   False: as if rich were not installed"""
    return [sys.executable, "-m", "layerstore"] if rich else [sys.executable, "-c", _WITHOUT_RICH]
