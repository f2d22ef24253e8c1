"""Pure functions on text, vectors and waveforms; no file, no model, no state."""
