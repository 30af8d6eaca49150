"""`python -m tests.train.task_runner TASK MODEL TRAIN DEV OUT [--resume] [name=value ...]`.

A fine-tuning run to be killed; also started by torchrun. DEV may be "-" for none. Prints the result
as its last line, exits 130 when interrupted.
"""

from __future__ import annotations

import json
import os
import sys

import torch

from bertkit.errors import BertkitError
from bertkit.train.finetune import finetune
from tests.train.small_tasks import quick


def main(arguments: list[str]) -> int:
    torch.set_num_threads(int(os.environ.get("RUNNER_THREADS", "1")))
    task, model, train, dev, out, *rest = arguments
    pairs = [argument.split("=", 1) for argument in rest if "=" in argument]
    settings = {name.replace(".", "__"): value for name, value in pairs}
    try:
        result = finetune(
            task,
            model,
            train,
            None if dev == "-" else dev,
            None,
            out,
            quick(**settings),
            resume="--resume" in rest,
            device="cpu",
        )
    except BertkitError as error:
        print(error, file=sys.stderr)
        return 1
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(result.to_dict()))
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
