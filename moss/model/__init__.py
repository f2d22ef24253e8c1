"""The generators. Networks know no data, loop or file format but their own checkpoint."""
