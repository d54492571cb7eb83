"""What labelling is, without files, tensors or Prefect: pure values and pure functions."""
