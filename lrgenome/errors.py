"""The error family.

Every error that a user can cause derives from `LrgenomeError` and from the builtin that a caller would
expect. Its message says what was got, what was expected, and where. Only `lrgenome.cli.app` turns them
into exit codes.
"""


_LONGEST = 1000
"""Characters of a message; what was got may be a line of megabytes."""


class LrgenomeError(Exception):
    """Root of the family."""

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= _LONGEST:
            return text
        half = _LONGEST // 2
        return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


class UsageError(LrgenomeError, ValueError):
    """Options or settings that contradict each other or name something impossible (exit 2)."""


class OutputExistsError(UsageError):
    """The output is there already and must not be replaced (exit 2)."""


class InputError(LrgenomeError, ValueError):
    """Input that is damaged or is not what it claims to be (exit 3)."""


class FastaError(InputError):
    """A FASTA file or its index is damaged, or a region is not in it."""


class VcfError(InputError):
    """A VCF or BCF file is damaged."""


class BedError(InputError):
    """A BED file is damaged."""


class ManifestError(InputError):
    """A manifest of training data is damaged or names something that is not there."""


class DownloadError(InputError):
    """A file cannot be downloaded, or is not what it must be."""


class AssemblyMismatchError(InputError):
    """Variants and reference do not belong together."""


class SkippedRecordsError(InputError):
    """Records were skipped under `--strict`."""


class OutputError(LrgenomeError, OSError):
    """Output could not be written: disk full, no permission, damaged partial file (exit 3)."""


class PeerLostError(LrgenomeError, RuntimeError):
    """Another process of a run that several share has died or cannot be reached (exit 1)."""


class DeviceError(LrgenomeError, RuntimeError):
    """A device or kernel that was asked for is not there (exit 4)."""


class ModelError(LrgenomeError, ValueError):
    """A model is missing, damaged or incompatible (exit 5)."""


class NumericalError(LrgenomeError, ArithmeticError):
    """A NaN or infinity, with the place it came from (exit 1)."""


class MemoryLimitError(LrgenomeError, MemoryError):
    """The work does not fit in memory (exit 137)."""
