"""Typed settings: frozen dataclasses own every value, Hydra only composes them (see `compose.py`)."""
