"""`python -m tests.train.runner DATA OUT [--resume] [name=value ...]`: a run to be killed.

Also started by torchrun. Prints the result as its last line, exits 130 when interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from bertkit import runtime
from bertkit.errors import BertkitError
from bertkit.train.pretrain import pretrain
from tests.train.conftest import small_recipe


def main(arguments: list[str]) -> int:
    torch.set_num_threads(int(os.environ.get("RUNNER_THREADS", "1")))
    runtime.matrix_peak = lambda device, dtype: 1e11
    data, out, *rest = arguments
    pairs = [argument.split("=", 1) for argument in rest if "=" in argument]
    settings = {name.replace(".", "__"): value for name, value in pairs}
    try:
        result = pretrain(
            [Path(data)],
            Path(out),
            small_recipe(**settings),
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
