"""Models of a few thousand parameters that know one or two sentences by heart, and a tokenizer that only hums."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from moss.config.compose import load_config
from moss.config.generation import SamplerConfig
from moss.config.model import DelayModelConfig, ModelConfig, Template, TextTokenizerConfig, TextTokenizerKind
from moss.config.schema import build, to_plain
from moss.config.tokenizer import CatConfig, MelRvqConfig
from moss.config.train import TrainConfig
from moss.data.text_tokenizer import build_text_tokenizer
from moss.generation.presets import preset
from moss.generation.speech_model import SpeechModel
from moss.loss import channel_loss_sums, weighted_mean
from moss.model.build import build_model
from moss.model.checkpoint import ModelCard, save_weights
from moss.model.delay import DelayModel
from moss.model.interface import Generator
from moss.model.local import LocalModel
from moss.sequence.labels import next_position_labels
from moss.sequence.layout import DelayLayout, Layout, build_layout
from moss.sequence.members import member_prompt
from moss.sequence.prompt import PromptMode, UserPrompt
from moss.spec import TokenizerSpec
from moss.tokenizer.cat import CatModel, CatTokenizer

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


class CausalTokenizer:
    """A tokenizer of 250 Hz whose samples depend on the codes of the frame and of the one before."""

    spec = TokenizerSpec(sampling_rate_hz=250, samples_per_frame=20, num_codebooks=8, codebook_size=16)
    fingerprint = "causal"

    def encode(self, waves: Sequence[Tensor], num_codebooks: int | None = None) -> list[Tensor]:
        """The level of each frame, in every codebook."""
        step = self.spec.samples_per_frame
        made = []
        for wave in waves:
            padded = torch.nn.functional.pad(wave, (0, -len(wave) % step))
            levels = (padded.view(-1, step).abs().mean(1) * 15).round().long().clamp(max=15)
            made.append(levels[:, None].repeat(1, num_codebooks or self.spec.num_codebooks))
        return made

    def decode(self, codes: Sequence[Tensor], num_samples: Sequence[int] | None = None) -> list[Tensor]:
        """A level a frame, with an echo of the frame before."""
        made = []
        for part in codes:
            level = part.float().mean(1) / 32
            echo = torch.cat([torch.zeros(1), level[:-1]])
            made.append((level + 0.5 * echo).repeat_interleave(self.spec.samples_per_frame))
        return made


def small_cat(num_codebooks: int = 4, *, audio_channels: int = 1, context_s: float = 0.1) -> CatTokenizer:
    """A Cat network of a few hundred values, 20 frames a second; it sees four times its context."""
    stage = {"kind": "transformer", "hidden_size": 8, "num_layers": 2, "num_heads": 2, "intermediate_size": 8}
    stage |= {"context_s": context_s, "layer_scale_init": 1.0}
    settings = {
        "kind": "cat",
        "sampling_rate_hz": 400,
        "samples_per_frame": 20,
        "num_audio_channels": audio_channels,
        "encoder": [
            {"kind": "patch", "patch_size": 10 * audio_channels},
            stage | {"input_size": 10 * audio_channels, "output_size": 4},
            {"kind": "patch", "patch_size": 2},
            stage | {"input_size": 8, "output_size": 6},
        ],
        "quantizer": {"input_size": 6, "residual_size": 4, "output_size": 6, "num_codebooks": num_codebooks}
        | {"code_size": 4, "codebook_size": 16},
    }
    torch.manual_seed(0)
    return CatTokenizer(CatModel(build(CatConfig, settings)))


def talking(architecture: str, member: str = "tts", **sizes: int) -> SpeechModel:
    """Random weights that speak: the text channel opens audio and goes on at the first frame.

    Args:
        architecture: One of the family.
        member: What it is taken for.
        sizes: Fields of the configuration that differ.
    """
    torch.manual_seed(5)
    small = load_config(TrainConfig, "train", [f"model={architecture}_xs"]).model
    depth = {name: 32 for name in ("depth_hidden_size", "depth_mlp_size", "depth_intermediate_size")}
    depth |= {"depth_num_layers": 1, "depth_num_heads": 2, "depth_num_kv_heads": 1, "depth_head_dim": 16}
    values = to_plain(small) | {name: value for name, value in depth.items() if hasattr(small, name)}
    values |= {"codebook_size": 16, "num_codebooks": 4, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    values |= {"num_kv_heads": 1, "head_dim": 16, "intermediate_size": 64, "initializer_range": 0.1}
    config = build(ModelConfig, values | {"max_positions": 800, "member": member} | sizes)
    if member == "ttsd":
        config = replace(config, template=Template.moss_ttsd_v1)
    text_config = TextTokenizerConfig(kind=TextTokenizerKind.compact)
    text_tokenizer = build_text_tokenizer(text_config)
    model, layout = build_model(config).eval(), build_layout(config, text_tokenizer.encode)
    _let_speak(model, layout)
    card = ModelCard(
        model=config,
        text_tokenizer=text_config,
        text_fingerprint=text_tokenizer.fingerprint,
        tokenizer=None,
        tokenizer_config=None,
        step=0,
    )
    settings = replace(preset(config), text=SamplerConfig(temperature=0.0), max_frames=12, batch_size=3)
    return SpeechModel(model, layout, card, tokenizer=CausalTokenizer(), config=settings)


@torch.no_grad()
def _let_speak(model: Generator, layout: Layout) -> None:
    """Write into the weights what the text channel is to do."""
    config, head = model.config, model.head_weight(0)
    if isinstance(model, DelayModel):
        special, newline = model.config.special_tokens, layout.encode("\n")[-1]
        head[:, :2] = 0
        # Each of these ids has a dimension of its own, which the residual stream carries to the head.
        for before, dimension, after in (
            (newline, 0, special.audio_start),
            (special.audio_start, 1, special.gen_slot),
            (special.gen_slot, 1, special.gen_slot),
        ):
            model.backbone.embed_tokens.weight[before, dimension] = 20
            head[after, dimension] = 20
    elif config.architecture == "realtime":
        # The end of a turn is never likely.
        model.head_weight(1)[config.codebook_size + 2] = 0
    else:
        table = model.model.embedding_list[0] if isinstance(model, LocalModel) else model.backbone.embed_tokens
        # One large dimension makes what the head sees nearly the same in every frame.
        table.weight[[layout.special.audio_start, layout.special.gen_slot], 1] = 20
        prompt = layout.conversation(UserPrompt(text="Hello there."))
        labels = torch.zeros(1, model.num_channels, dtype=torch.long)
        labels[0, 0] = layout.special.gen_slot
        state = model.supervised(model(prompt[None]).hidden[0, -1:], labels).states[0, 0]
        go, end = (0, 1) if len(head) == 2 else (layout.special.gen_slot, layout.special.audio_end)
        head[go], head[end] = state, -state


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
        seen = model.supervised(model(tokens, document_lengths=lengths).hidden, targets)
        result = channel_loss_sums(seen.states, seen.labels, model.head_weight, scales=seen.scales)
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
    prompts = [member_prompt(config.member, config.template, text=text, language="en") for text in TEXTS]
    examples = [(prompt, codes_for(text, 4)) for prompt, text in zip(prompts, TEXTS, strict=True)]
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
