"""The figures of a study."""

NOTHING = "Nothing to show"  # the key of a PNG's text that says why nothing is drawn
