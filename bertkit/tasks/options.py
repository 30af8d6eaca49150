"""TaskOptions: how a task reads rows and decodes scores; kept in the model's config.json."""

from __future__ import annotations

from dataclasses import dataclass

from bertkit.errors import UsageError


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Settings of all tasks; each reads those that concern it.

    Attributes:
        max_length: tokens of a sequence, special ones counted; 0: 384 for qa, else as many as the
            model reads.
        doc_stride: tokens that neighbouring windows of a long text share (tag, qa), as in
            transformers' run_qa; at most half of the room in a window.
        max_query_length: tokens of a question; the rest is cut off.
        max_answer_length: tokens of an answer; 0: 50 where squad_metric is cmrc, else 30.
        n_best_size: how many answers compete.
        no_answer: a passage may not answer its question (SQuAD 2.0).
        null_threshold: no answer is given where the score of none is better than the best
            answer's by more than this.
        crf: tags are decoded together, by a conditional random field.
        scheme: what the model's tags are, one of schemes.SCHEMES; "": plain where each word
            has a label of its own, else BIO.
        multi_label: a text may have several labels, or none.
        pairs: the rows learnt from were pairs of texts, or (False) single texts; None: not known.
        threshold: a label of several counts as given from this probability on.
        squad_metric: squad, squad2 or cmrc; "": squad2 with no_answer, cmrc for Chinese passages.
    """

    max_length: int = 0
    doc_stride: int = 128
    max_query_length: int = 64
    max_answer_length: int = 0
    n_best_size: int = 20
    no_answer: bool = False
    null_threshold: float = 0.0
    crf: bool = False
    scheme: str = ""
    multi_label: bool = False
    pairs: bool | None = None
    threshold: float = 0.5
    squad_metric: str = ""

    def __post_init__(self) -> None:
        for name, least in (("max_length", 0), ("doc_stride", 0), ("max_query_length", 0),
                            ("max_answer_length", 0), ("n_best_size", 1)):  # fmt: skip
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be {least} or more")
        if 0 < self.max_length < 8:
            raise UsageError(f"max_length is {self.max_length}; it must be 8 or more")
        if not 0 < self.threshold < 1:
            raise UsageError(f"threshold is {self.threshold}; it must lie between 0 and 1")
