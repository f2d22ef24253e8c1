"""Audio tokenizers: waveform to discrete codes and back."""
