"""moss: open training and evaluation of the MOSS-TTS family of speech generators."""

__version__ = "0.1.0"
