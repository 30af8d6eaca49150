"""`bertkit predict`: a file of any format in, predictions out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from bertkit.verbs.ask import Model, Revision
from bertkit.verbs.columns import ColumnOptions, DecodingOptions, say_skipped
from bertkit.verbs.options import Common, Switch, warnings_unless_refused


@Parameter(name="*")
@dataclass(kw_only=True)
class PredictFlags:
    """Where predictions go, and what they look like."""

    out: Annotated[
        Path | None,
        Parameter(
            help="The file (.jsonl .csv .tsv .conll), or for SQuAD's files a folder or "
            "predictions.json; without it, standard output."
        ),
    ] = None
    format: Annotated[
        Literal["jsonl", "csv", "tsv", "conll", "squad"] | None,
        Parameter(help="By default as the extension says, else jsonl."),
    ] = None
    with_text: Annotated[bool, Switch, Parameter(help="Write the texts beside.")] = False
    overwrite: Annotated[bool, Switch, Parameter(help="Replace what is there.")] = False
    revision: Revision = None


def predict(
    model: Model,
    file: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True, help="Rows with or without labels; - is standard input."
        ),
    ],
    /,
    *,
    options: PredictFlags | None = None,
    reading: ColumnOptions | None = None,
    decoding: DecodingOptions | None = None,
    common: Common | None = None,
) -> None:
    """Predict for every row of a file; interrupted and run again, it continues."""
    options, reading = options or PredictFlags(), reading or ColumnOptions()
    common, decoding = common or Common(), decoding or DecodingOptions()
    from bertkit.infer.predict import PredictOptions, open_answers, predict_file
    from bertkit.infer.stream import predict_stream

    chosen = PredictOptions(
        columns=reading.columns(),
        format=options.format,
        texts=options.with_text,
        skip_bad_rows=reading.skip_bad_rows,
        overwrite=options.overwrite,
    )
    with warnings_unless_refused():
        answers = open_answers(model, common.device, revision=options.revision, **decoding.given())
        if options.out is None or str(options.out) == "-":
            result = predict_stream(answers, file, _print, chosen, say=common.say)
            text = ""
        else:
            with common.progress("predicting", "rows") as report:
                result = predict_file(
                    answers, file, options.out, chosen, say=common.say, report=report
                )
            text = f"{result.rows:,} rows in {', '.join(map(str, result.files))}"
    say_skipped(common, result.skipped, result.findings)
    for note in result.notes:
        common.say(note)
    common.show(result.to_dict(), text)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
