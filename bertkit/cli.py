"""The command line: which verbs there are, and what becomes of errors.

Importing this module loads no torch: each verb imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from bertkit import __version__
from bertkit.errors import BertkitError, UsageError

DONE, BAD_INPUT, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130

app = App(
    name="bertkit",
    help="The whole life of a BERT encoder, from plain text on.",
    version=__version__,
    help_format="plaintext",
    help_formatter="plain",
    default_parameter=Parameter(negative=(), name_transform=lambda name: name),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)

# Where a verb is, what it does, what it must be given. Named, not imported: `--help` reads these
# lines alone, and a verb loads no other. The demo runs the command line itself.
VERBS = {
    "vocab": (
        "bertkit.verbs.corpus:vocab",
        "Learn a WordPiece vocabulary from a corpus, and report how it covers held-out text.",
        "CORPUS... --out DIR",
    ),
    "prepare": (
        "bertkit.verbs.corpus:prepare",
        "Turn a corpus into token shards, once; interrupted and run again, it continues.",
        "CORPUS... --tokenizer DIR --out DIR",
    ),
    "pretrain": (
        "bertkit.verbs.pretrain:pretrain",
        "Pretrain a BERT on prepared shards: masked words and next sentences.",
        "DATA --out RUN",
    ),
    "grow": (
        "bertkit.verbs.grow:grow",
        "Let a model read longer inputs: its position embeddings are tiled. Then train it.",
        "MODEL --out DIR --positions N",
    ),
    "fill": ("bertkit.verbs.ask:fill", "Predict what stands at each [MASK].", "MODEL [TEXT...]"),
    "next": (
        "bertkit.verbs.ask:next_sentence",
        "How likely is it that sentence B follows sentence A?",
        "MODEL A B",
    ),
    "finetune": (
        "bertkit.verbs.finetune:finetune",
        "Fine-tune a model on a labelled file: classify, regress, tag, qa, choose.",
        "TASK MODEL --train FILE --out RUN",
    ),
    "evaluate": (
        "bertkit.verbs.evaluate:evaluate",
        "Measure a fine-tuned model on a labelled file; with --other compare two.",
        "MODEL FILE",
    ),
    "predict": (
        "bertkit.verbs.predict:predict",
        "Predict for every row of a file; interrupted and run again, it continues.",
        "MODEL FILE",
    ),
    "score": (
        "bertkit.verbs.scoring:score",
        "Score every text of a file: pseudo-log-likelihoods, as JSON lines.",
        "MODEL FILE...",
    ),
    "explain": (
        "bertkit.verbs.explain:app",
        "Look inside a model: vectors, layers, heads, scores. Each verb has its own --help.",
        "",
    ),
    "doctor": (
        "bertkit.verbs.doctor:doctor",
        "Show what this machine can do or, with a MODEL, what that model holds.",
        "[MODEL]",
    ),
    "demo": (
        "bertkit.demo:demo",
        "Run the whole story on English text that this machine has already.",
        "",
    ),
}
for _name, (_place, _help, _arguments) in VERBS.items():
    # Said here, since making it from the flags again takes a sixth of the time of `--help`.
    _usage = " ".join(("Usage: bertkit", _name, *_arguments.split(), "[OPTIONS]"))
    app.command(_place, name=_name, help=_help, **({"usage": _usage} if _arguments else {}))


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """Let --skip-bad-rows stand for --skip_bad_rows, up to a bare --."""
    spelled: list[str] = []
    for index, argument in enumerate(arguments):
        if argument == "--":
            return [*spelled, *arguments[index:]]
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            flag = "--" + flag[2:].replace("-", "_")
        spelled.append(flag + equals + value)
    return spelled


def fail(error: Exception, code: int) -> int:
    """Say what is wrong in one line on standard error."""
    said = str(error)
    if isinstance(error, OSError) and error.strerror:  # without "[Errno 2]"
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print(f"bertkit: error: {' '.join(said.split())}", file=sys.stderr)
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0 done, 1 the input or the model is bad, 2 wrong usage, 130 interrupted with everything saved.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        spelled = with_underscores(given)
        if "--help" in spelled[: spelled.index("--") if "--" in spelled else None]:
            app.help_print([word for word in spelled if word != "--help"])  # no flag is bound
        else:
            app(spelled)
        sys.stdout.flush()
        return DONE
    except (CycloptsError, BertkitError, OSError) as error:
        if debug:
            raise
        if isinstance(error, BrokenPipeError):
            # The reader, such as `head`, has seen enough. Python would complain again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return DONE
        return fail(
            error, BAD_USAGE if isinstance(error, CycloptsError | UsageError) else BAD_INPUT
        )
    except KeyboardInterrupt as error:
        print("; ".join(("bertkit: interrupted", *error.args)), file=sys.stderr)
        return INTERRUPTED
