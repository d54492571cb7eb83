"""Mask Auto-Labeler (arXiv 2301.03992): a mask for every box, from a network that never saw a mask.

`load_network(path)` gives the network of a checkpoint: `network(crops, boxes)` are mask logits.
"""

from tasks.models.mal.checkpoints import load_network

__all__ = ["load_network"]
