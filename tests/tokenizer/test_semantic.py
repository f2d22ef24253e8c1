"""What the language model sees and predicts, that padding is nothing to it, that it learns, and its scaling."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moss.config.tokenizer_training import SemanticConfig
from moss.tokenizer.losses import MultiScaleMelLoss
from moss.tokenizer.semantic import SemanticHead, SemanticTask, norm_factor
from tests.tokenizer.conftest import small_model

CONFIG = SemanticConfig(hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_text_tokens=6)
INPUT_SIZE, VOCAB_SIZE = 5, 11


class Inputs(NamedTuple):
    quantized_BTD: Tensor
    frames_B: Tensor
    text_BL: Tensor
    text_lengths_B: Tensor
    tags_B: Tensor


def head(config: SemanticConfig = CONFIG) -> SemanticHead:
    torch.manual_seed(0)
    return SemanticHead(config, INPUT_SIZE, VOCAB_SIZE, len(SemanticTask))


def inputs() -> Inputs:
    random = torch.Generator().manual_seed(1)
    return Inputs(
        torch.randn(3, 9, INPUT_SIZE, generator=random),
        torch.tensor([9, 4, 6]),
        torch.randint(0, VOCAB_SIZE, (3, 5), generator=random),
        torch.tensor([2, 5, 3]),
        torch.tensor([SemanticTask.asr, SemanticTask.caption, SemanticTask.multi_speaker_asr]),
    )


def row(x: Inputs, i: int) -> Inputs:
    """Item i without padding."""
    frames, tokens = int(x.frames_B[i]), int(x.text_lengths_B[i])
    one = slice(i, i + 1)
    return Inputs(
        x.quantized_BTD[one, :frames], x.frames_B[one], x.text_BL[one, :tokens], x.text_lengths_B[one], x.tags_B[one]
    )


def test_loss_is_that_of_a_plain_sequence() -> None:
    module, x = head(), row(inputs(), 1)
    tag, audio, text = module.tags(x.tags_B)[:, None], module.audio(x.quantized_BTD), module.text(x.text_BL)
    hidden = module.norm(module.blocks(torch.cat((tag, audio, text), 1)))
    # Tag, 4 frames, 5 tokens: the last frame and all tokens predict the tokens and the end.
    logits = F.linear(hidden[0, 4:], module.text.weight)
    expected = F.cross_entropy(logits, torch.tensor([*x.text_BL[0].tolist(), VOCAB_SIZE]))
    torch.testing.assert_close(module(*x), expected)
    assert len(logits) == 6


def test_loss_is_the_mean_over_all_tokens_whatever_the_padding() -> None:
    module, x = head(), inputs()
    alone = [module(*row(x, i)) for i in range(3)]
    counts = [length + 1 for length in x.text_lengths_B.tolist()]
    expected = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(module(*x), expected)


def test_padding_is_never_read() -> None:
    module, x = head(), inputs()
    dirty = x._replace(quantized_BTD=F.pad(x.quantized_BTD, (0, 0, 0, 3)), text_BL=F.pad(x.text_BL, (0, 2), value=-1))
    for i in range(3):
        dirty.quantized_BTD[i, x.frames_B[i] :] = math.nan
        dirty.text_BL[i, x.text_lengths_B[i] :] = -100
    gradients = []
    for case in (x, dirty):
        quantized = case.quantized_BTD.clone().requires_grad_()
        module.zero_grad()
        loss = module(*case._replace(quantized_BTD=quantized))
        loss.backward()
        assert quantized.grad is not None
        gradients.append((loss.detach(), quantized.grad[:, :9], *[p.grad for p in module.parameters()]))
    for plain, padded in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, padded, atol=1e-6, rtol=1e-5)
    for i in range(3):
        assert not gradients[0][1][i, x.frames_B[i] :].any()


def test_every_frame_and_the_tag_matter() -> None:
    module, x = head(), row(inputs(), 0)
    quantized = x.quantized_BTD.clone().requires_grad_()
    module(*x._replace(quantized_BTD=quantized)).backward()
    assert quantized.grad is not None
    assert quantized.grad.any(-1).all()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    other = module(*x._replace(tags_B=torch.tensor([SemanticTask.caption])))
    assert other.item() != module(*x).item()


@pytest.mark.parametrize("unpaired_tokens", [0, 7])
def test_items_without_text_or_with_too_much_do_not_count(unpaired_tokens: int) -> None:
    module, x = head(), inputs()
    text = F.pad(x.text_BL, (0, 2))
    mixed = x._replace(text_BL=text, text_lengths_B=torch.tensor([2, unpaired_tokens, 3]))
    kept = Inputs(*(tensor[[0, 2]] for tensor in x))
    torch.testing.assert_close(module(*mixed), module(*kept))


def test_a_batch_without_text_has_zero_loss_and_zero_gradients() -> None:
    module, x = head(), inputs()
    quantized = x.quantized_BTD.clone().requires_grad_()
    none = x._replace(quantized_BTD=quantized, text_lengths_B=torch.zeros(3, dtype=torch.long))
    loss = module(*none)
    assert loss.item() == 0
    loss.backward()
    assert quantized.grad is not None
    assert not quantized.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_audio_of_no_frames_is_predicted_from_the_tag() -> None:
    assert head()(*inputs()._replace(frames_B=torch.tensor([0, 0, 0]))).isfinite()


def test_parameter_count() -> None:
    assert sum(p.numel() for p in SemanticHead(SemanticConfig(), 768, 512, 3).parameters()) == 3_481_344


def test_untrained_it_guesses() -> None:
    assert head()(*inputs()).item() == pytest.approx(math.log(VOCAB_SIZE + 1), rel=0.3)


def test_it_learns_two_clips_by_heart() -> None:
    module, x = head(), inputs()
    # The same tag: only the audio tells the clips apart.
    two = Inputs(*(tensor[:2] for tensor in x))._replace(tags_B=torch.zeros(2, dtype=torch.long))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    first = module(*two).item()
    for _ in range(60):
        loss = module(*two)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first > 1.5
    assert loss.item() < 0.05
    swapped = two._replace(quantized_BTD=two.quantized_BTD.flip(0), frames_B=two.frames_B.flip(0))
    assert module(*swapped).item() > 1


def test_scaling_sets_the_norm_at_the_quantizer_and_keeps_directions() -> None:
    at = torch.randn(2, 3, 4, requires_grad=True)
    mine, others = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)

    def losses() -> tuple[Tensor, Tensor]:
        return 1000 * ((at * mine).sin()).sum(), (at * others).square().mean()

    plain = torch.autograd.grad(losses()[0], (at, mine))
    reference = torch.autograd.grad(losses()[1], (at, others))
    loss, reference_loss = losses()
    factor = norm_factor(loss, reference_loss, at, 0.3)
    scaled = loss * factor
    gradients = torch.autograd.grad(scaled, (at, mine), retain_graph=True)
    assert gradients[0].norm().item() == pytest.approx(0.3 * reference[0].norm().item(), rel=1e-5)
    assert not factor.requires_grad
    for before, after in zip(plain, gradients, strict=True):
        torch.testing.assert_close(after, before * factor)
    both = torch.autograd.grad(scaled + reference_loss, others)[0]
    torch.testing.assert_close(both, reference[1])


def test_without_a_gradient_the_factor_is_zero() -> None:
    at = torch.randn(3, requires_grad=True)
    elsewhere = torch.randn(3, requires_grad=True)
    live = at.square().sum()
    for loss, reference in (
        (at.sum() * 0, live),
        (live, at.sum() * 0),
        (elsewhere.sum(), live),
        (live, at.new_ones(())),
    ):
        factor = norm_factor(loss, reference, at, 2.0)
        assert factor.item() == 0
    still = at.sum() * 0
    (at.sum() * still * norm_factor(still, live, at, 2.0)).backward()
    assert at.grad is not None
    assert at.grad.isfinite().all()


def test_at_the_quantizers_output_it_reaches_encoder_and_projections_but_no_table() -> None:
    model, module = small_model(), SemanticHead(CONFIG, 12, VOCAB_SIZE, len(SemanticTask))
    wave = torch.randn(3, 9 * 480, generator=torch.Generator().manual_seed(0)) * 0.1
    generated, output = model(wave)
    at, mel = output.quantized_BTD, MultiScaleMelLoss(24_000)(generated, wave)
    loss = module(at, *inputs()[1:])
    scaled = loss * norm_factor(loss, mel, at, 0.5)
    mel_norm = torch.autograd.grad(mel, at, retain_graph=True)[0].norm()
    semantic_norm = torch.autograd.grad(scaled, at, retain_graph=True)[0].norm()
    torch.testing.assert_close(semantic_norm, 0.5 * mel_norm)
    scaled.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.encoder.parameters())
    for layer in model.quantizer.layers:
        assert layer.codebook.weight.grad is None or not layer.codebook.weight.grad.any()
    assert all(p.grad is None for p in model.decoder.parameters())
