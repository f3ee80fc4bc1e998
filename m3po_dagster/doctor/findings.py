"""What a check found."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `about` names it, `what` says how it is, `do` what to do about a problem."""

    level: Level
    about: str
    what: str
    do: str = ""

    def __str__(self) -> str:
        return f"{self.about}: {self.what}" + (f". {self.do}" if self.do else "")


def ok(about: str, what: str) -> Finding:
    """All is well."""
    return Finding("ok", about, what)


def note(about: str, what: str, do: str = "") -> Finding:
    """Worth knowing, nothing fails by it."""
    return Finding("note", about, what, do)


def problem(about: str, what: str, do: str) -> Finding:
    """Something fails, or will."""
    return Finding("problem", about, what, do)
