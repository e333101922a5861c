"""Errors whose message is all a user needs; no traceback is shown."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message names the file or key, what was expected, and what to do."""


class TrainingError(RuntimeError):
    """Training cannot go on: the message gives the stage, epoch and learning rate, and says what to try."""
