"""The one exception that means 'the input is at fault, not the program'."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message names the file or key, what was expected, and what to do."""
