"""Heavy models behind small interfaces; nothing is imported or loaded before a backend is built."""
