"""Folders on any fsspec backend: files whole or not at all, errors that pass waited for, and who may write there."""
