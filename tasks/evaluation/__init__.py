"""How good labels are against ground truth: boxes, masks, and what the two sides have in common."""
