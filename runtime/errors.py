"""The errors a user can cause, each with the exit status its command ends with.

A message is one line: what was wanted, what was found, what to do.
"""


class DlmError(Exception):
    """An expected failure; the command line prints it as one line, without a traceback."""

    exit_code = 1


class ConfigError(DlmError):
    """An option or setting that is out of range, unknown or contradicts another one."""

    exit_code = 2


class DataError(DlmError):
    """Text, tokens or a data set that cannot be used."""


class CheckpointError(DlmError):
    """A training checkpoint that cannot be read, or is not of the kind asked for."""


class BundleError(DlmError):
    """A bundle that is missing, damaged, foreign or of another schema version."""


class EngineError(DlmError):
    """A graph that no backend here can run, or that failed while it ran."""


class DeviceError(DlmError):
    """A GPU, driver, sensor or board facility that is missing or refused."""


class CalibrationError(DlmError):
    """Calibration data or a quantisation plan that cannot be used."""


def brief(text: object, limit: int) -> str:
    """Gives a foreign message in one line of at most `limit` characters, cut between words."""
    line = " ".join(str(text).split())
    if len(line) <= limit:
        return line
    cut = line[: limit - 3]
    return (cut.rpartition(" ")[0] or cut) + "..."
