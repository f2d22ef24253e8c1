"""Train the compact BPE that ships in `assets/`.

`python -m moss.data.compact_bpe --manifest data/speech/utterances.jsonl`
"""

import argparse
import sys
from pathlib import Path

from moss.data.files import atomic_write
from moss.data.manifest import read_manifest
from moss.sequence.templates import USER_TEMPLATE
from moss.spec import SPECIAL_TOKEN_STRINGS

_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_compact_bpe(texts: list[str], vocab_size: int) -> str:
    """Train the compact BPE: Qwen's splitting rules, but each field header of the prompt template is one piece.

    A model of a few million parameters then spends about a dozen positions on the template instead of sixty.

    Args:
        texts: Transcripts.
        vocab_size: Number of ids, bytes and control tokens included.

    Returns:
        The content of a `tokenizer.json`.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    header = r"(?:^|\n)(?:<user_inst>\n)?- [A-Z][A-Za-z() ]+:\n(?:None(?=\n|$))?|\n</user_inst>"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(header), behavior="isolated"),
            pre_tokenizers.Split(Regex(f"{header}|{_QWEN_SPLIT}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(string, special=True, normalized=False) for string in SPECIAL_TOKEN_STRINGS.values()]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    absent = {name: "None" for name in ("reference", "instruction", "tokens", "quality", "sound_event")}
    template = USER_TEMPLATE.format(**absent, ambient_sound="None", language="English", text="")
    # Repeated so that the headers' merges are learnt before any word's.
    turns = ["user\n", "assistant\n", template]
    tokenizer.train_from_iterator(turns * max(1000, len(texts)) + texts, trainer=trainer)
    tokenizer.add_special_tokens(specials)
    return str(tokenizer.to_str(pretty=False))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="train the compact BPE on the transcripts of a manifest")
    parser.add_argument("--manifest", type=Path, required=True, help="utterances.jsonl")
    parser.add_argument("--vocab-size", type=int, default=1024, help="ids, bytes and control tokens included")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "assets" / "compact_bpe.json")
    arguments = parser.parse_args()
    texts = sorted({row.text for row in read_manifest(arguments.manifest)})
    with atomic_write(arguments.output) as temporary:
        temporary.write_text(train_compact_bpe(texts, arguments.vocab_size) + "\n", encoding="utf-8")
    sys.stdout.write(f"{arguments.output}: {arguments.vocab_size} ids from {len(texts)} texts\n")


if __name__ == "__main__":
    main()
