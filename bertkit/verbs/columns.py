"""What the command line says about a labelled file, and how scores are decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from bertkit.verbs.options import Common, Switch

if TYPE_CHECKING:
    from bertkit.tasks.formats import BadRows, Columns, Findings

FileFormat = Literal["csv", "tsv", "jsonl", "json", "conll", "lines"]


@Parameter(name="*", group="Reading the file")
@dataclass(kw_only=True)
class FileOptions:
    """What a labelled file is, where that is not found out."""

    text_column: Annotated[
        str | None,
        Parameter(
            name=("--text", "--text_column"),
            help="The text, or the first of a pair; the question (qa). A name, or a number.",
        ),
    ] = None
    pair_column: Annotated[
        str | None,
        Parameter(
            name=("--pair", "--pair_column"),
            help="The second text; the passage (qa); the question (choose).",
        ),
    ] = None
    label_column: Annotated[
        str | None,
        Parameter(
            name=("--label", "--label_column"), help="The label; the tag (CoNLL); the answers (qa)."
        ),
    ] = None
    header: Annotated[
        bool | None,
        Parameter(help="The first line names the columns.", negative="--no_header"),
    ] = None
    file_format: Annotated[
        FileFormat | None, Parameter(help="What the file is, whatever its extension.")
    ] = None
    joiner: Annotated[
        str | None, Parameter(help="What stands between the words of a CoNLL file.")
    ] = None
    skip_bad_rows: Annotated[
        bool, Switch, Parameter(help="Count bad rows and go on, instead of stopping at the first.")
    ] = False


@Parameter(name="*", group="Reading the file")
@dataclass(kw_only=True)
class ColumnOptions(FileOptions):
    """The same, and which column names the row in the answers."""

    id_column: Annotated[
        str | None, Parameter(name=("--id", "--id_column"), help="The row's own id.")
    ] = None

    def columns(self) -> Columns:
        """The same, as the reader takes it."""
        from bertkit.tasks.formats import Columns

        return Columns(
            text=self.text_column,
            pair=self.pair_column,
            label=self.label_column,
            id=self.id_column,
            header=self.header,
            format=self.file_format,
            joiner=self.joiner,
        )


@Parameter(name="*", group="Decoding")
@dataclass(kw_only=True)
class DecodingOptions:
    """How scores become predictions; by default as the model was fine-tuned."""

    threshold: Annotated[
        float | None,
        Parameter(help="Of several labels one is given from this probability on."),
    ] = None
    null_threshold: Annotated[
        float | None,
        Parameter(help="No answer is given where none scores better by more than this."),
    ] = None
    no_answer: Annotated[
        bool | None, Parameter(help="A passage may not answer its question (SQuAD 2.0).")
    ] = None
    max_answer_length: Annotated[int | None, Parameter(help="Tokens of an answer.")] = None
    n_best_size: Annotated[int | None, Parameter(help="How many answers compete.")] = None
    squad_metric: Annotated[
        Literal["squad", "squad2", "cmrc"] | None, Parameter(help="How answers are measured.")
    ] = None

    def given(self) -> dict[str, Any]:
        """Those that were given."""
        return {name: value for name, value in vars(self).items() if value is not None}


def say_skipped(common: Common, skipped: BadRows, findings: Findings | None = None) -> None:
    """A line for each kind of bad row that was left out, and of what else was found."""
    for line in skipped.lines():
        common.say(f"left out: {line}")
    for line in findings.lines() if findings is not None else ():
        common.say(f"found: {line}")
