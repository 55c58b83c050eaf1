"""What a cosine with the original's outputs means, in words."""

# Of outputs or embeddings with the original's. all-MiniLM-L6-v2's correlation on STS-B at these cosines, in
# docs/benchmarks: at .99 within 1 % of the original's, at .94 too after recovery; without it, at .93 below.
_WORDS = (
    (0.9995, "the same for practical purposes"),
    (0.98, "very close to it"),
    (0.94, "close to it; check it on your task"),
    (0.85, "no longer close to it; check it on your task, and see collab-hf heal"),
)


def closeness(cosine: float) -> str:
    """A verdict on a cosine with the original's outputs.

    Args:
        cosine: in [-1, 1].

    Returns:
        A few words.
    """
    for least, words in _WORDS:
        if cosine >= least:
            return words
    return "far from it; keep more of the model, or see collab-hf heal"
