"""Errors whose message is all that a user needs: no traceback is shown."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: the message names the file or key, what was expected, and what to do."""


class TrainingError(RuntimeError):
    """Training cannot go on: the message says at which stage, epoch and rate, and what to try."""
