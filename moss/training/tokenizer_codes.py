"""Codebooks in training: fitted when the bypass ends, dead codes moved, use watched."""

import logging
from typing import Any

import torch
from torch import Tensor

from moss.config.train import TrainConfig
from moss.spec import TokenizerSpec
from moss.tokenizer.cat import CatModel
from moss.tokenizer.codebook_health import CodebookHealth, codebook_health, count_codes
from moss.tokenizer.recipe import initialise_from_data, replace_dead_codes, seeded
from moss.training.ema import EmaWeights
from moss.training.processes import copy_from_first, total
from moss.training.tokenizer_data import SegmentSampler
from moss.training.tokenizer_waves import interleaved

logger = logging.getLogger(__name__)

_INIT, _REPLACE, _FIT_SEGMENTS = 3, 4, 5
"""Stream numbers of random draws; `tokenizer_data` has 1 and 6, `lit_tokenizer` 2."""
REPLACEMENT_BATCHES = 8
"""Batches that are encoded to find latents for dead codes."""
WINDOW_STEPS = 100
"""Use is watched over the last one to two windows of so many steps."""
MIN_USED_FRAC, MIN_PERPLEXITY_FRAC = 0.25, 0.05
"""A codebook below either has collapsed. Measured collapses used 0.15 to 0.21 of 256 codes, with perplexity 6 to 8."""


class CodebookCare:
    """Fits, replaces and counts; all processes hold the same numbers.

    Args:
        model: The network whose quantizer is cared for.
        config: The run.
        spec: Code sizes.
        sampler: Draws further segments for fitting and replacing.
    """

    def __init__(self, model: CatModel, config: TrainConfig, spec: TokenizerSpec, sampler: SegmentSampler) -> None:
        self._model, self._config, self._sampler = model, config, sampler
        self._size = spec.codebook_size
        zeros = torch.zeros(spec.num_codebooks, spec.codebook_size, dtype=torch.int64)
        self._since_replaced, self._window, self._window_before = zeros, zeros.clone(), zeros.clone()
        self._warned: set[int] = set()

    def state(self) -> dict[str, Tensor]:
        """What a resumed run goes on with."""
        return {
            "since_replaced": self._since_replaced.cpu(),
            "window": self._window.cpu(),
            "window_before": self._window_before.cpu(),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """See `state`."""
        self._since_replaced, self._window = state["since_replaced"].clone(), state["window"].clone()
        self._window_before = state["window_before"].clone()

    def before_step(self, step: int, optimizer_state: Any, ema: EmaWeights | None) -> int:
        """What is due before a step.

        Args:
            step: The step.
            optimizer_state: Of the network's optimizer: moments of what jumps are forgotten.
            ema: Moving average in which the same jumps.

        Returns:
            Codes that were moved.
        """
        settings = self._config.tokenizer_training
        coded = step - settings.bypass_steps
        every = settings.replace_every_steps
        if coded == 0 and settings.init_frames:
            self._fit(step, settings.init_frames, optimizer_state)
            if ema is not None:
                ema.copy_from(self._model)
        last = settings.replace_until_frac * self._config.schedule.max_steps
        if coded > 0 and every and coded % every == 0 and step <= last:
            return self._replace(step, settings.replace_below_uses, optimizer_state, ema)
        return 0

    def count(self, codes_BTK: Tensor, step: int) -> None:
        """Count the codes of a step; warn of a codebook that has collapsed."""
        counts = total(count_codes(codes_BTK, self._size))
        self._since_replaced = self._since_replaced.to(counts.device).add_(counts)
        self._window = self._window.to(counts.device).add_(counts)
        if (step + 1) % WINDOW_STEPS == 0:
            self._warn(step)
            self._window_before, self._window = self._window, torch.zeros_like(self._window)

    def health(self) -> CodebookHealth:
        """Use over the last one to two windows; at least one step must have been counted."""
        return codebook_health(self._window + self._window_before.to(self._window.device))

    def _warn(self, step: int) -> None:
        health = codebook_health(self._window)
        least = MIN_PERPLEXITY_FRAC * self._size
        use = enumerate(zip(health.used_frac, health.perplexity, strict=True))
        collapsed = {i for i, (used, perplexity) in use if used < MIN_USED_FRAC or perplexity < least}
        # Few frames cannot use many codes.
        if health.frames < self._size:
            return
        settings = self._config.tokenizer_training
        for i in sorted(collapsed - self._warned):
            logger.warning(
                "step %d: codebook %d has collapsed: %.1f%% of its %d codes used in the last %d steps, perplexity "
                "%.1f; expected at least %.0f%% and %.1f. Fit codebooks to data with tokenizer_training.bypass_steps "
                "and init_frames (now %d and %d), move dead codes with replace_every_steps (now %d), or lower optim.lr",
                step,
                i,
                100 * health.used_frac[i],
                self._size,
                WINDOW_STEPS,
                health.perplexity[i],
                100 * MIN_USED_FRAC,
                least,
                settings.bypass_steps,
                settings.init_frames,
                settings.replace_every_steps,
            )
        self._warned = collapsed

    def _encode(self, number: int, stream: int, step: int) -> Tensor:
        batch = self._sampler.extra(number, stream, step)
        device = next(self._model.parameters()).device
        return self._model.encode_hidden(interleaved(batch.waves.to(device)))

    @torch.no_grad()
    def _fit(self, step: int, frames: int, optimizer_state: Any) -> None:
        hidden: list[Tensor] = []
        while sum(len(piece) for piece in hidden) < frames:
            hidden.append(self._encode(len(hidden), _FIT_SEGMENTS, step).flatten(0, 1).cpu())
        quantizer = self._model.quantizer
        device = next(quantizer.parameters()).device
        explained = initialise_from_data(quantizer.cpu(), torch.cat(hidden)[:frames], self._config.seed)
        quantizer.to(device)
        copy_from_first(quantizer.parameters())
        logger.info(
            "step %d: codebooks fitted to %d frames; variance explained after each: %s",
            step,
            frames,
            " ".join(f"{share:.3f}" for share in explained),
        )
        # Moments of the weights before belong to other numbers.
        for parameter in quantizer.parameters():
            optimizer_state.pop(parameter, None)

    @torch.no_grad()
    def _replace(self, step: int, min_uses: int, optimizer_state: Any, ema: EmaWeights | None) -> int:
        quantizer = self._model.quantizer
        latents = []
        for i in range(REPLACEMENT_BATCHES):
            output = quantizer(self._encode(step * REPLACEMENT_BATCHES + i, _REPLACE, step))
            latents.append(output.latents_BTKc.flatten(0, 1))
        generator = seeded(self._config.seed, _INIT, step)
        moved = replace_dead_codes(quantizer, self._since_replaced, torch.cat(latents), min_uses, generator)
        copy_from_first(layer.codebook.weight for layer in quantizer.layers)
        for i, (layer, rows) in enumerate(zip(quantizer.layers, moved, strict=True)):
            state = optimizer_state.get(layer.codebook.weight, {})
            for name in ("exp_avg", "exp_avg_sq"):
                if name in state:
                    state[name][rows] = 0
            if ema is not None:
                ema.copy_rows(self._model, f"quantizer.quantizers.{i}.codebook.weight", rows)
        self._since_replaced = torch.zeros_like(self._since_replaced)
        return int(moved.sum())
