"""bertkit: the whole life of a BERT encoder.

The names below load the modules they live in when first used, so that `import bertkit` costs
nothing and `bertkit --help` never waits for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertkit.checkpoint.config import BertConfig
    from bertkit.errors import BertkitError

__version__ = "0.1.0"

HOMES = {
    "BertConfig": "bertkit.checkpoint.config",
    "BertkitError": "bertkit.errors",
}

__all__ = [
    "BertConfig",
    "BertkitError",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its home, once."""
    home = HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'bertkit' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
