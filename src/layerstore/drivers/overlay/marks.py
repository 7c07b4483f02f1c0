"""Marks: of which class the marks of each id are: trusted.overlay.*, or user.overlay.* as in a user namespace.

A mount sees the marks of one class alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Marks(Protocol):
    """The classes of the ids below one home. True stands for user.overlay.*, False for trusted.overlay.*."""

    def for_new(self, parent: str) -> bool:
        """Choose the class of what is made on parent, or on ""."""

    def write(self, directory: str, user: bool) -> None:
        """Remember the class of a directory in the making. Raises OSError."""

    def set(self, id: str, user: bool) -> None:
        """id is written to as this class from now on."""

    def forget(self, id: str) -> None:
        """id is gone."""

    def is_user(self, id: str) -> bool:
        """Say of which class id's marks are."""

    def view(self, top: str, lowers: Sequence[str]) -> bool:
        """Choose the class that shows all of these as they were registered and written.

        top      what is written to, perhaps; lowers: ids below
        Raises   NotSupportedError   there is none
        """

    def problem(self, id: str) -> str | None:
        """Say in a sentence that a mount of this process would not see id's marks; None if it does."""
