"""Every error that bertkit raises on purpose.

BertkitError (a ValueError)
|-- UsageError            settings that contradict each other, or a setting out of range
|-- DataError             a user's text: what, which file, which line
|   `-- StaleDataError    prepared shards made from other text, another tokenizer, other options
|-- ConfigError           a config.json or a recipe that cannot be read or makes no sense
|-- CheckpointError       a model folder or a training checkpoint is missing, broken or hostile
|   `-- MissingHeadError  the checkpoint lacks a head, or never trained it, that this call needs
`-- TrainingError         training cannot go on: NaN, a spike, no learning

The command line prints the message of a BertkitError as one line and exits 1 (UsageError: 2).
A programmer's mistake raises AssertionError, TypeError or the like, and shows its traceback.
"""

from pathlib import Path


class BertkitError(ValueError):
    """The root of all errors that a user can cause and mend."""


class UsageError(BertkitError):
    """The settings contradict each other, or one is out of range."""


class DataError(BertkitError):
    """A user's text is bad. The message names the file and, where it has one, the line.

    Args:
        what: what is wrong and what to do, in one line.
        path: the file, as the user named it.
        line: the line, counted from 1; where rows are no lines, words: "question 7".
    """

    def __init__(
        self, what: str, path: str | Path | None = None, line: int | str | None = None
    ) -> None:
        self.what, self.path, self.line = what, path, line
        at = "" if line is None else f":{line}" if isinstance(line, int) else f", {line}"
        if str(path) == "-":
            path, at = "standard input", at.replace(":", ", line ")
        where = "" if path is None else f"{path}{at}: "
        super().__init__(where + what)


class StaleDataError(DataError):
    """The prepared shards were made from other text, another tokenizer or other options."""


class ConfigError(BertkitError):
    """A config.json or a recipe cannot be read or makes no sense."""


class CheckpointError(BertkitError):
    """A model folder or a training checkpoint is missing, broken or hostile."""


class MissingHeadError(CheckpointError):
    """The checkpoint lacks the head that this call needs, or the head was never trained."""


class TrainingError(BertkitError):
    """Training cannot go on: the loss is NaN or has spiked, and the recipe says to stop."""
