"""Pure tensor functions between text, codes and the grid of language-model positions. No module, state or file."""
