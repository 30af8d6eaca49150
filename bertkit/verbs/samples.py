"""`bertkit prepare --show N`: examples as training will see them, for a person to judge."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bertkit.data.collate import Vocabulary
from bertkit.data.loader import PretrainLoader, SampleExample
from bertkit.data.shards import TokenStore
from bertkit.settings import DataSettings
from bertkit.text.tokenizer import BertTokenizer

LABELS = {0: "is_next", 1: "random", -100: "no pair"}


@dataclass(frozen=True, slots=True)
class Shown:
    """One example: its pair with the hidden words in braces, `{word -> what stands there}`."""

    label: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Samples:
    """Some examples, and how the labels of many more are balanced."""

    examples: list[Shown]
    balance: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        total = max(1, sum(self.balance.values()))
        shares = ", ".join(f"{name} {count / total:.1%}" for name, count in self.balance.items())
        lines = [f"labels of the first examples: {shares}"]
        for shown in self.examples:
            lines += ["", f"[{shown.label}]", f"  A  {shown.a}", f"  B  {shown.b}"]
        return "\n".join(lines)


def show_samples(
    folder: Path, count: int, seed: int = 0, masking: Literal["token", "word", "span"] = "token"
) -> Samples:
    """The first examples that default settings make of the shards in `folder`, so masked."""
    from bertkit.train.setup import vocabulary_of

    tokenizer = BertTokenizer.from_pretrained(folder / "tokenizer")
    vocabulary: Vocabulary = vocabulary_of(tokenizer)
    settings = DataSettings(masking=masking)
    store = TokenStore(folder / "train")
    loader = PretrainLoader(
        [store], settings, vocabulary, seed=seed, batch_tokens=settings.max_length * 32
    )
    shown = [_shown(tokenizer, example) for example in loader.sample(count)]
    return Samples(shown, loader.nsp_balance())


def _shown(tokenizer: BertTokenizer, example: SampleExample) -> Shown:
    sides: tuple[list[str], list[str]] = ([], [])
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id}
    for token, there, label, segment in zip(
        example.ids, example.masked_ids, example.labels, example.token_type_ids, strict=True
    ):
        if token in special:
            continue
        word, seen = tokenizer.convert_ids_to_tokens([token, there])
        sides[segment].append(word if label < 0 else f"{{{word} -> {seen}}}")
    return Shown(LABELS[example.nsp_label], " ".join(sides[0]), " ".join(sides[1]))
