"""Speech coders that tokenizers are compared with: Opus, Codec 2, and mel frames without quantization."""
