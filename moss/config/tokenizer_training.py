"""Settings of training the audio tokenizer (`task=tokenizer`)."""

from pathlib import Path

from moss.config.schema import section


@section
class TokenizerTrainingConfig:
    """From a manifest of audio to a trained Cat. Loss weights and dropout default to the published recipe's."""

    manifest: Path | None = None
    """utterances.jsonl written by data_prep/01_manifest.py; clips of split `train` are trained on, those of `heldout`
    are scored."""
    segment_s: float = 3.84
    """Length of the random segments in seconds; rounded down to whole frames."""
    segments_per_step: int = 8
    mel_weight: float = 15.0
    mel_floor: float = 1e-5
    """Mel magnitudes below it count as silence."""
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    codebook_dropout_prob: float = 1.0
    """Share of segments that train with a random number of codebooks instead of all."""
    bypass_steps: int = 0
    """First so many steps train encoder and decoder without codes in between."""
    init_frames: int = 0
    """Frames that the codebooks are fitted to when the bypass ends; 0 keeps their random start."""
    replace_every_steps: int = 0
    """How often codes that are hardly used move to where the data is; 0 is never."""
    replace_below_uses: int = 2
    """Codes with fewer uses since the last replacement are moved."""
    max_wall_s: float | None = None
    """Stop, save and score after so long, even before schedule.max_steps; the next start goes on."""
    cache_bytes: int = 2_000_000_000
    """Decoded audio kept in memory, at two bytes a sample."""

    def validate(self) -> list[str]:
        """Ranges."""
        problems = [
            f"{name}: must be positive, got {getattr(self, name)}"
            for name in ("segment_s", "segments_per_step", "mel_floor")
            if getattr(self, name) <= 0
        ]
        at_least_zero = ["mel_weight", "commitment_weight", "codebook_weight", "bypass_steps", "init_frames"]
        at_least_zero += ("replace_every_steps", "replace_below_uses", "cache_bytes")
        problems += [
            f"{name}: must be 0 or more, got {getattr(self, name)}" for name in at_least_zero if getattr(self, name) < 0
        ]
        if not 0 <= self.codebook_dropout_prob <= 1:
            problems.append(f"codebook_dropout_prob: must be in [0, 1], got {self.codebook_dropout_prob}")
        if self.max_wall_s is not None and self.max_wall_s <= 0:
            problems.append(f"max_wall_s: must be positive, got {self.max_wall_s}")
        return problems
