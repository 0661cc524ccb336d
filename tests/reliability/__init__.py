"""Tests of faults from outside; docs/reliability.md lists them."""
