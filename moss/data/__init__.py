"""Recordings and texts on disk: manifests, code arrays, shards, and how they are checked and read."""
