"""Tests of the pipelines in docs/pipelines, and of our files in the hands of other programs."""
