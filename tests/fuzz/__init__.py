"""Damaged and lying files given to every reader: `python -m tests.fuzz.run` in the checkout."""
