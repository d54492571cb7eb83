"""The steps of labelling, and below them what steps are made of: domain, formats, store, image files, models."""
