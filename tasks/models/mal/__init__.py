"""Mask Auto-Labeler (arXiv 2301.03992): a mask for every box, from a network that never saw a mask.

`load_network(path)` gives the network of a checkpoint: `network(crops, boxes)` are mask logits. `Overrides` say what an
original file cannot tell of it.
"""

from tasks.models.mal.checkpoints import Overrides, load_network

__all__ = ["Overrides", "load_network"]
