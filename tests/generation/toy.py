"""Models of a few thousand parameters that know one or two sentences by heart, and a tokenizer that only hums."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from moss.config.compose import load_config
from moss.config.model import DelayModelConfig, TextTokenizerConfig, TextTokenizerKind
from moss.config.schema import to_plain
from moss.config.tokenizer import MelRvqConfig
from moss.config.train import TrainConfig
from moss.data.loader import ExampleBuilder
from moss.data.text_tokenizer import build_text_tokenizer
from moss.loss import channel_loss_sums, weighted_mean
from moss.model.build import build_model
from moss.model.checkpoint import ModelCard, save_weights
from moss.model.delay import DelayModel
from moss.sequence.labels import next_position_labels
from moss.sequence.layout import DelayLayout
from moss.sequence.prompt import PromptMode, UserPrompt
from moss.spec import TokenizerSpec

FINGERPRINT = "0123456789abcdef"
TEXTS = ["one two", "press the star key"]
"""What `write_checkpoint` teaches."""


class HummingTokenizer:
    """Stands in for an audio tokenizer: loudness in, a tone out."""

    spec = TokenizerSpec(sampling_rate_hz=16_000, samples_per_frame=1280, num_codebooks=4, codebook_size=16)

    def __init__(self, fingerprint: str = FINGERPRINT) -> None:
        self.fingerprint = fingerprint
        self.decoded = 0

    def encode(self, waves: Sequence[Tensor], num_codebooks: int | None = None) -> list[Tensor]:
        count = num_codebooks or self.spec.num_codebooks
        return [torch.full((self.spec.num_frames(len(wave)), count), 3) for wave in waves]

    def decode(self, codes: Sequence[Tensor], num_samples: Sequence[int] | None = None) -> list[Tensor]:
        self.decoded += len(codes)
        return [torch.sin(torch.arange(len(part) * self.spec.samples_per_frame) * 0.1) * 0.5 for part in codes]


def build_humming(*_: object, **__: object) -> HummingTokenizer:
    """Takes the place of `build_tokenizer`."""
    return HummingTokenizer()


def geometry(num_codebooks: int) -> DelayModelConfig:
    """The smallest model on the compact text tokenizer."""
    config = load_config(TrainConfig, "train").model
    assert isinstance(config, DelayModelConfig)
    return replace(
        config,
        num_codebooks=num_codebooks,
        codebook_size=16,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        intermediate_size=64,
        initializer_range=0.1,
        max_positions=200,
    )


def layout_of(config: DelayModelConfig) -> DelayLayout:
    """The compact text tokenizer's layout."""
    bpe = build_text_tokenizer(TextTokenizerConfig(kind=TextTokenizerKind.compact))
    return DelayLayout(
        encode=bpe.encode,
        special=config.special_tokens,
        num_codebooks=config.num_codebooks,
        codebook_size=config.codebook_size,
    )


def codes_for(text: str, num_codebooks: int) -> Tensor:
    """Made-up codes of a sentence, shape (frames, codebooks)."""
    random = torch.Generator().manual_seed(len(text))
    return torch.randint(0, 16, (len(text.split()) + 4, num_codebooks), generator=random)


def learnt_by_heart(config: DelayModelConfig, examples: Sequence[tuple[UserPrompt, Tensor]]) -> DelayModel:
    """A model trained until it has every target of the examples on top."""
    torch.manual_seed(0)
    model, layout = build_model(config), layout_of(config)
    inputs, labels = [], []
    for prompt, codes in examples:
        rows = layout.conversation(prompt, [codes], PromptMode.loss)
        made = next_position_labels(rows, len(layout.conversation(prompt)), layout.pad_code)
        inputs.append(made[0])
        labels.append(made[1])
    tokens, targets = torch.cat(inputs)[None], torch.cat(labels)[None]
    lengths = [len(part) for part in inputs]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(600):
        result = channel_loss_sums(model(tokens, document_lengths=lengths).hidden, targets, model.head_weight)
        loss = weighted_mean(result.sums, result.counts, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss.detach()) < 0.02:
            return model.eval()
    raise AssertionError("the toy model did not learn its examples")


def write_checkpoint(folder: Path) -> Path:
    """A checkpoint that says `TEXTS` and ends."""
    config = geometry(4)
    examples = [(ExampleBuilder.prompt(text, "en"), codes_for(text, 4)) for text in TEXTS]
    folder.mkdir(parents=True)
    save_weights(learnt_by_heart(config, examples).state_dict(), folder)
    text_tokenizer = TextTokenizerConfig(kind=TextTokenizerKind.compact)
    card = ModelCard(
        model=config,
        text_tokenizer=text_tokenizer,
        text_fingerprint=build_text_tokenizer(text_tokenizer).fingerprint,
        tokenizer={"name": "humming", "fingerprint": FINGERPRINT},
        tokenizer_config=to_plain(MelRvqConfig()),
        step=1,
    )
    (folder / "moss.json").write_text(card.to_json())
    return folder
