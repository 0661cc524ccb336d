"""The runners that tasks may be given."""

from __future__ import annotations

from lrgenome.engine.runner import Runner
from lrgenome.engine.windows import WindowRunner

AnyRunner = Runner | WindowRunner
"""Streams a recurrent model, or runs whole windows of a transformer."""
