"""The audio-to-text loss: a small causal language model reads quantizer outputs and predicts the transcript.

Source: MOSS-TTS technical report (arXiv 2603.18090) eq. 1 for the order task tag, audio, text and the loss on text
alone. Size, end token, tied tables and the scaling by gradient norm are choices of this project.
"""

from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moss.config.tokenizer import TransformerStage
from moss.config.tokenizer_training import SemanticConfig
from moss.tokenizer.transformer import Transformer

_UNLIMITED_S = 1e9
"""Window of the language model at one position per second: longer than any sequence."""
SMALLEST_NORM = 1e-12


class SemanticTask(IntEnum):
    """What the text of a clip is; the value is the row of its tag."""

    asr = 0
    """The words of one speaker."""
    multi_speaker_asr = 1
    """The words of several speakers, with their turns."""
    caption = 2
    """A description of what is heard."""


class SemanticHead(nn.Module):
    """A decoder-only language model over task tag, audio frames and text tokens.

    Its weights belong to training, not to the tokenizer. One table embeds and predicts the text; its last row is the
    end token.

    Args:
        config: Sizes.
        input_size: Width of the quantizer's output.
        vocab_size: Ids of the text tokenizer.
        num_tags: Task tags, `len(SemanticTask)`.
    """

    def __init__(self, config: SemanticConfig, input_size: int, vocab_size: int, num_tags: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.max_text_tokens = config.max_text_tokens
        self.end_id = vocab_size
        self.audio = nn.Linear(input_size, width)
        self.tags = nn.Embedding(num_tags, width)
        self.text = nn.Embedding(vocab_size + 1, width)
        stage = TransformerStage(
            input_size=width,
            output_size=width,
            hidden_size=width,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            intermediate_size=config.intermediate_size,
            context_s=_UNLIMITED_S,
            layer_scale_init=1.0,
        )
        self.blocks = Transformer(stage, positions_per_s=1.0)
        self.norm = nn.LayerNorm(width)
        # The table is the output layer too: logits start at unit scale.
        nn.init.normal_(self.text.weight, std=width**-0.5)

    def forward(
        self, quantized_BTD: Tensor, frames_B: Tensor, text_BL: Tensor, text_lengths_B: Tensor, tags_B: Tensor
    ) -> Tensor:
        """Mean cross-entropy of the text tokens and the end token after them.

        Items without text, or with more than `max_text_tokens`, do not count; when none is left the loss is zero, and
        so are its gradients.

        Args:
            quantized_BTD: Decoder input as the quantizer gives it, gradients included.
            frames_B: Frames of each item; later ones are padding.
            text_BL: Ids, in [0, vocab_size) up to each item's length.
            text_lengths_B: Tokens of each item.
            tags_B: Rows of `SemanticTask`.
        """
        paired_B = (text_lengths_B > 0) & (text_lengths_B <= self.max_text_tokens)
        if not paired_B.any():
            # Every parameter takes part, so that a process without texts has gradients to average with the others.
            return torch.stack([x.sum() * 0 for x in (quantized_BTD, *self.parameters())]).sum()
        quantized_BTD, frames_B, tags_B = quantized_BTD[paired_B], frames_B[paired_B], tags_B[paired_B]
        text_BL, text_lengths_B = text_BL[paired_B], text_lengths_B[paired_B]
        hidden_BPD = self.blocks(self._sequence(quantized_BTD, frames_B, text_BL, text_lengths_B, tags_B))
        steps_L = torch.arange(text_BL.shape[1] + 1, device=text_BL.device)
        rows, steps = (steps_L <= text_lengths_B[:, None]).nonzero(as_tuple=True)
        # The last frame predicts the first token, the last token the end.
        predicting = self.norm(hidden_BPD[rows, frames_B[rows] + steps])
        targets = F.pad(text_BL, (0, 1))[rows, steps].masked_fill(steps == text_lengths_B[rows], self.end_id)
        return F.cross_entropy(predicting @ self.text.weight.T, targets)

    def _sequence(
        self, quantized_BTD: Tensor, frames_B: Tensor, text_BL: Tensor, text_lengths_B: Tensor, tags_B: Tensor
    ) -> Tensor:
        """Tag, frames and tokens of each item without gaps: padding stands last, where no other position sees it."""
        frames, tokens = quantized_BTD.shape[1], text_BL.shape[1]
        assert int(frames_B.max()) <= frames, "more frames than the tensor has"
        assert int(text_lengths_B.max()) <= tokens, "more tokens than the tensor has"
        device = text_BL.device
        past_B1T = torch.arange(frames, device=device) >= frames_B[:, None]
        audio_BTD = self.audio(quantized_BTD.float().masked_fill(past_B1T[..., None], 0.0))
        past_BL = torch.arange(tokens, device=device) >= text_lengths_B[:, None]
        text_BLD = self.text(text_BL.masked_fill(past_BL, self.end_id))
        parts = torch.cat((self.tags(tags_B)[:, None], audio_BTD, text_BLD), 1)
        length = 1 + int((frames_B + text_lengths_B).max())
        at_BP = torch.arange(length, device=device).expand(len(parts), -1)
        skipped_B1 = (frames - frames_B)[:, None]
        source_BP = torch.where(at_BP <= frames_B[:, None], at_BP, at_BP + skipped_B1).clamp(max=parts.shape[1] - 1)
        return parts.gather(1, source_BP[..., None].expand(-1, -1, parts.shape[2]))


def norm_factor(
    loss: Tensor,
    reference_loss: Tensor,
    at: Tensor,
    weight: float,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The constant by which `loss` gets a gradient at `at` of `weight` times the norm of `reference_loss`' there.

    Both graphs are kept. Costs a backward pass of each loss down to `at`.

    Args:
        loss: To be scaled.
        reference_loss: Sets the norm.
        at: A tensor both depend on, e.g. the quantizer's output.
        weight: Ratio of the two norms at `at`.
        total: Where several processes share the batch, sums a tensor over them: norms are then those of all.

    Returns:
        A scalar without gradient; 0 where either loss has no gradient at `at`.
    """
    norms = torch.stack([_gradient_norm(one, at) for one in (loss, reference_loss)])
    if total is not None:
        norms = total(norms.square()).sqrt()
    return torch.where(norms[0] > SMALLEST_NORM, weight * norms[1] / norms[0].clamp(min=SMALLEST_NORM), 0.0)


def _gradient_norm(loss: Tensor, at: Tensor) -> Tensor:
    if not loss.requires_grad:
        return at.new_zeros(())
    gradient: Tensor | None = torch.autograd.grad(loss, at, retain_graph=True, allow_unused=True)[0]
    return at.new_zeros(()) if gradient is None else torch.linalg.vector_norm(gradient)
