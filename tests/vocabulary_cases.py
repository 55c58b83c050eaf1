"""Small tokenizers of every kind, made in memory from seeded random pieces."""

import json
import random
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AlbertTokenizer,
    BertTokenizer,
    CLIPTokenizer,
    GPT2Tokenizer,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

LETTERS = "abcde"
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NAMES = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def random_strings(seed: int, number: int, longest: int) -> list[str]:
    """Different strings of two letters and more."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < number:
        found["".join(draw.choices(LETTERS, k=draw.randint(2, longest)))] = None
    return list(found)


def wrapped(backend: Tokenizer, **settings: Any) -> PreTrainedTokenizerFast:
    """A transformers tokenizer with the special tokens of BERT around a text."""
    ids = {name: backend.token_to_id(name) for name in ("[CLS]", "[SEP]")}
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=list(ids.items())
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", **{**NAMES, **settings})


def wordpiece(seed: int = 0) -> PreTrainedTokenizerFast:
    """Some letters are missing at the start of a word or inside of it, so that words are unknown."""
    pieces = [*SPECIALS, *"abcé", *(f"##{letter}" for letter in "abd"), "."]
    pieces += [f"##{piece}" for piece in random_strings(seed, 40, 4)] + random_strings(seed + 1, 40, 4)
    random.Random(seed).shuffle(rest := pieces[5:])
    names = [*pieces[:5], *rest]
    backend = Tokenizer(
        models.WordPiece(
            {name: i for i, name in enumerate(names)}, unk_token="[UNK]", max_input_chars_per_word=9
        )
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    tokenizer = wrapped(backend)
    tokenizer.add_tokens(["bad cab"])
    return tokenizer


def random_merges(seed: int, symbols: list[str], number: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Pairs of pieces at random; some pieces are reached in two ways, some in none."""
    draw = random.Random(seed)
    pieces, merges = list(symbols), []
    while len(merges) < number:
        pair = draw.choice(pieces), draw.choice(pieces)
        if pair in merges or len("".join(pair)) > 6:
            continue
        merges.append(pair)
        if "".join(pair) not in pieces:
            pieces.append("".join(pair))
    draw.shuffle(merges)
    return pieces, merges


def byte_bpe(seed: int = 0) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2 and RoBERTa have it."""
    pieces, merges = random_merges(seed, [*LETTERS, "\u0120"], 80)
    alphabet = [c for c in sorted(pre_tokenizers.ByteLevel.alphabet()) if c not in pieces]
    names = [*SPECIALS, *alphabet, *pieces]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = wrapped(backend)
    tokenizer.add_tokens(["bad cab"])
    return tokenizer


def word_bpe(seed: int = 0) -> PreTrainedTokenizerFast:
    """BPE of characters with an end of the word, as CLIP has it, and with unknown characters."""
    inside, ends = list(LETTERS[:4]), [f"{letter}</w>" for letter in LETTERS]
    draw = random.Random(seed)
    pieces, merges = random_merges(seed, inside, 40)
    for _ in range(40):
        pair = draw.choice(pieces), draw.choice(ends)
        if pair not in merges and len("".join(pair)) < 11:
            merges.append(pair)
            ends.append("".join(pair))
    names = dict.fromkeys([*SPECIALS, *pieces, *ends])
    model = models.BPE(
        {name: i for i, name in enumerate(names)}, merges, unk_token="[UNK]", end_of_word_suffix="</w>"
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder()
    return wrapped(backend)


def unigram(seed: int = 0) -> PreTrainedTokenizerFast:
    """Unigram with a space of its own; scores repeat, one letter is missing."""
    draw = random.Random(seed)
    pieces = ["\u2581", *LETTERS[:4], *random_strings(seed, 40, 4)]
    pieces += [f"\u2581{piece}" for piece in random_strings(seed + 1, 40, 4)]
    scored = [(name, 0.0) for name in SPECIALS] + [(p, -float(draw.randint(2, 14))) for p in pieces]
    backend = Tokenizer(models.Unigram(scored, unk_id=1, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = wrapped(backend)
    tokenizer.add_tokens(["bad cab"])
    return tokenizer


def word_level(seed: int = 0) -> PreTrainedTokenizerFast:
    """Whole words."""
    names = [*SPECIALS, *LETTERS, *random_strings(seed, 40, 4)]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return wrapped(backend)


KINDS = {
    "wordpiece": wordpiece,
    "byte_bpe": byte_bpe,
    "word_bpe": word_bpe,
    "unigram": unigram,
    "word_level": word_level,
}


FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def pieces_after(specials: tuple[str, ...], tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Another tokenizer's pieces behind special tokens of one's own."""
    names = [name for name in model_of(tokenizer)["vocab"] if name not in SPECIALS]
    return {name: i for i, name in enumerate(dict.fromkeys([*specials, *names]))}


def model_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The model entry of tokenizer.json."""
    found: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return found


def merges_of(tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, str]]:
    """Merges as the classes of hosts take them."""
    return [(left, right) for left, right in model_of(tokenizer)["merges"]]


def scores_after(specials: tuple[str, ...]) -> list[tuple[str, float]]:
    """The same for Unigram."""
    own = [(name, 0.0) for name in specials]
    return own + [(p, s) for p, s in model_of(unigram())["vocab"] if p not in SPECIALS]


# The classes that transformers has for BERT, RoBERTa, BART, GPT-2, T5, ...
HOSTS: dict[str, Any] = {
    "bert": lambda: BertTokenizer(vocab=pieces_after(SPECIALS, wordpiece())),
    "mpnet": lambda: MPNetTokenizer(vocab=pieces_after((*FAIRSEQ, "[UNK]"), wordpiece())),
    "gpt2": lambda: GPT2Tokenizer(
        vocab=pieces_after(("<|endoftext|>",), byte_bpe()), merges=merges_of(byte_bpe())
    ),
    "roberta": lambda: RobertaTokenizer(
        vocab=pieces_after(FAIRSEQ, byte_bpe()), merges=merges_of(byte_bpe())
    ),
    "clip": lambda: CLIPTokenizer(
        vocab=pieces_after(("<|startoftext|>", "<|endoftext|>"), word_bpe()), merges=merges_of(word_bpe())
    ),
    "t5": lambda: T5Tokenizer(vocab=scores_after(("<pad>", "</s>", "<unk>")), extra_ids=10),
    "albert": lambda: AlbertTokenizer(vocab=scores_after(("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"))),
    "xlm_roberta": lambda: XLMRobertaTokenizer(vocab=[*scores_after(FAIRSEQ[:4]), ("<mask>", 0.0)]),
}
