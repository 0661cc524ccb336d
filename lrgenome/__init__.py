"""lrgenome: state-space models of DNA that are practical at long range."""

__version__ = "0.1.0"
