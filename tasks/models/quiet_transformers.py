"""Transformers as a library: without its talk, and with the errors that its readers raise."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging as transformers_logging

from tasks.models import tensor_files

# What reading a damaged or foreign checkpoint raises, over torch, safetensors and transformers.
UNREADABLE = (*tensor_files.UNREADABLE, StrictDataclassError)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars, reports and advice on standard error; what they would say is checked, or cannot be helped."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You'd better set embed_dim")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
