"""The compiled modules, loaded while no signal's handler is called.

What such a handler raises while an extension module of Cython's limited API initialises itself ends the process with a
segmentation fault (seen with Cython 3.3). Signals that come meanwhile are handled behind it, a few milliseconds later.
"""

from __future__ import annotations

import signal

# In a thread other than the main one, signal handlers raise nothing.
_held = signal.pthread_sigmask(signal.SIG_BLOCK, {n for n in signal.valid_signals() if callable(signal.getsignal(n))})
try:
    from layerstore._core import _apply, _changes, _clone, _files, _listing, _locks, _mount, _pack, _tarstream
finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held)

__all__ = ["_apply", "_changes", "_clone", "_files", "_listing", "_locks", "_mount", "_pack", "_tarstream"]
