"""Readers and writers of the formats that genomics pipelines use; imports rank 0 only."""
