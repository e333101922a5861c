"""The commands: a module each, with its arguments beside what it does."""
