"""The tokenizer and chat template of a model as a GGUF file has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spa_recipes.data.chat import Renderer, load_tokenizer
from spa_recipes.errors import DataError

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""llama.cpp's types of tokens."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {
    _WORDS + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES: "llama-bpe",
    _WORDS + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES: "qwen2",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES: "tekken",
}
"""What llama.cpp calls the way in which a byte-level tokenizer splits text, by its regular expression."""


class Vocabulary(NamedTuple):
    """A tokenizer in llama.cpp's terms.

    Attributes:
        model: `gpt2` for byte-level BPE, `llama` for SentencePiece.
        pre: what llama.cpp calls the way in which text is split.
        merges: of byte-level BPE; SentencePiece has `scores` in their place.
        ids: of the special tokens, by llama.cpp's name of their role.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]
    ids: dict[str, int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str

    def write(self, writer: GGUFWriter) -> None:
        """Write it into the head of a file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        for role, index in self.ids.items():
            getattr(writer, f"add_{role}_token_id")(index)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        writer.add_add_space_prefix(self.add_space_prefix)
        writer.add_chat_template(self.chat_template)


def vocabulary_of(folder: Path, rows: int, where: str) -> Vocabulary:
    """The tokenizer of a model with embeddings for `rows` tokens.

    Raises:
        DataError: it has no chat template, or is none that llama.cpp knows by a name.
    """
    tokenizer = load_tokenizer(folder)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise DataError("its tokenizer has no tokenizer.json", where=where, fix="save it as a fast tokenizer")
    backend: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    if model["type"] != "BPE":
        raise _unknown(f"its tokenizer is {model['type']}, not BPE", where)
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise DataError("its tokenizer has several chat templates", where=where, fix="keep one")
    tokens, types = _tokens(backend, rows, where)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    pre = _way_of_splitting(backend)
    prefix = False
    scores: list[float] = []
    if pre is None and model.get("byte_fallback"):
        prefix, pre = _space_prefix(backend, where), "default"
        scores = _scores(tokens, [merge.replace(" ", "", 1) for merge in merges])
        merges = []
    elif pre is None:
        raise _unknown("its tokenizer splits text in a way that llama.cpp has no name for", where)
    probe = tokenizer("a")["input_ids"]
    return Vocabulary(
        "llama" if scores else "gpt2",
        pre,
        tokens,
        types,
        merges,
        scores,
        _special_ids(tokenizer, len(tokens)),
        probe[:1] == [tokenizer.bos_token_id],
        probe[-1:] == [tokenizer.eos_token_id],
        prefix,
        template,
    )


def _unknown(what: str, where: str) -> DataError:
    return DataError(
        f"{what}: this export knows those of Llama, Mistral, Qwen and SmolLM",
        where=where,
        fix="use convert_hf_to_gguf.py of llama.cpp",
    )


def _tokens(backend: Mapping[str, Any], rows: int, where: str) -> tuple[list[str], list[int]]:
    """Tokens in the order of their ids, and the type of each; ids without a token get a name of their own.

    Raises:
        DataError: a token has no embedding.
    """
    tokens, types = [f"[PAD{index}]" for index in range(rows)], [UNUSED] * rows
    added = {token["id"]: token for token in backend["added_tokens"]}
    words = {index: word for word, index in backend["model"]["vocab"].items()}
    beyond = sorted(index for index in words.keys() | added.keys() if index >= rows)
    if beyond:
        word = added[beyond[0]]["content"] if beyond[0] in added else words[beyond[0]]
        raise DataError(
            f"the tokenizer's {word} is token {beyond[0]}, and the model has embeddings for {rows}",
            where=where,
            fix="call model.resize_token_embeddings(len(tokenizer)) and save the model again",
        )
    unknown = backend["model"].get("unk_token")
    for index, word in words.items():
        is_byte = bool(backend["model"].get("byte_fallback")) and len(word) == 6 and word.startswith("<0x")
        tokens[index], types[index] = word, BYTE if is_byte else NORMAL
    for index, token in added.items():
        tokens[index], types[index] = token["content"], CONTROL if token["special"] else USER_DEFINED
        if token["content"] == unknown:
            types[index] = UNKNOWN
    return tokens, types


def _way_of_splitting(backend: Mapping[str, Any]) -> str | None:
    """llama.cpp's name for how a byte-level tokenizer splits text; None where it has none."""
    if (backend.get("normalizer") or {"type": "NFC"})["type"] != "NFC":
        return None
    pre = backend.get("pre_tokenizer") or {}
    steps = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    before: list[dict[str, Any]] = steps[:-1]
    if steps[-1].get("use_regex", True):
        digits = [{"type": "Digits", "individual_digits": True}]
        return "gpt-2" if not before else "smollm" if before == digits else None
    if len(before) == 1 and before[0]["type"] == "Split" and before[0].get("behavior") == "Isolated":
        return _SPLITS.get(before[0]["pattern"].get("Regex", ""))
    return None


def _space_prefix(backend: Mapping[str, Any], where: str) -> bool:
    """Whether SentencePiece puts a space before a text.

    Raises:
        DataError: it is another tokenizer with bytes to fall back on.
    """
    pre, normalizer = backend.get("pre_tokenizer") or {}, backend.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    kinds = [step["type"] for step in steps]
    if pre.get("type") == "Metaspace" and not kinds:
        return bool(pre.get("prepend_scheme", "always") != "never")
    if not pre and kinds in (["Prepend", "Replace"], ["Replace"]):
        return "Prepend" in kinds
    raise _unknown("its tokenizer changes text in a way of its own", where)


def _scores(tokens: list[str], merged: list[str]) -> list[float]:
    """Scores by which SentencePiece merges in the order of `merged`: the earlier, the higher."""
    ranks = {word: -float(rank) for rank, word in reversed(list(enumerate(merged, start=1)))}
    return [ranks.get(token, 0.0 if len(token) == 1 else -float(len(merged) + 1)) for token in tokens]


def _special_ids(tokenizer: Any, count: int) -> dict[str, int]:
    """Ids by llama.cpp's names of their roles; `eot` ends an assistant's turn."""
    found = {
        role: getattr(tokenizer, f"{role}_token_id")
        for role in ("bos", "eos", "unk", "pad")
        if getattr(tokenizer, f"{role}_token_id") is not None
    }
    renderer = Renderer(tokenizer, max_prompt_length=1, max_length=2, notice=lambda _: None)
    return {**found, "eot": renderer.end_of_turn_id}
