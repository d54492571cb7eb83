"""Bytes to domain types and back, one file format per module."""
