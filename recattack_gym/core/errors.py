"""Every error that the package raises on purpose.

```
RecAttackError
├── ArgumentError (ValueError)        an argument, action or profile that is out of range or malformed
│   └── UnknownNameError (KeyError)   a name that no registry has; suggests the nearest one
├── StateError (RuntimeError)         a call at the wrong moment: score before fit, step after the end
├── DataError (ValueError)            a data file that is not what it should be: says file, line, reason
│   └── DatasetNotFoundError (FileNotFoundError)  says where to get the file and where to put it
├── ArtifactError (ValueError)        a saved victim, profile or result that cannot be read or trusted
└── KnowledgeError (PermissionError)  an attacker asked its view for more than its knowledge level allows
```
"""

from collections.abc import Iterable
from difflib import get_close_matches


class RecAttackError(Exception):
    """Base class of all errors of this package."""


class ArgumentError(RecAttackError, ValueError):
    """An argument is wrong; the message names it, its value and what would be right."""


class UnknownNameError(ArgumentError, KeyError):
    """A name is in no registry."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        near = nearest_name(str(name), names)
        hint = "." if near is None else f"; did you mean {near!r}?"
        super().__init__(f"unknown {kind} {name!r}{hint} Known: {', '.join(names) or 'none'}.")

    def __str__(self) -> str:
        """Return the plain message; `KeyError` alone would print its repr."""
        return str(self.args[0])

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by message, so that worker processes can report it."""
        return (_restore_unknown_name, (self.args[0],))


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that was probably meant, upper and lower case alike, or `None`."""
    by_lower = {other.lower(): other for other in known}
    near = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[near[0]] if near else None


def _restore_unknown_name(message: str) -> UnknownNameError:
    error = UnknownNameError.__new__(UnknownNameError)
    error.args = (message,)
    return error


class StateError(RecAttackError, RuntimeError):
    """A call came at the wrong moment; the message says what has to happen first."""


class DataError(RecAttackError, ValueError):
    """A data file is not what it should be; the message says file, line and reason."""


class DatasetNotFoundError(DataError, FileNotFoundError):
    """A dataset is not on this machine; the message says where to get it and where to put it."""

    def __str__(self) -> str:
        """Return the plain message; `OSError` would look for an errno."""
        return str(self.args[0])


class ArtifactError(RecAttackError, ValueError):
    """A saved victim, profile or result cannot be read or does not belong here."""


class KnowledgeError(RecAttackError, PermissionError):
    """An attacker asked for more than its knowledge level allows."""

    def __str__(self) -> str:
        """Return the plain message; `OSError` would look for an errno."""
        return str(self.args[0])
