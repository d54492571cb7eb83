"""The flows on Prefect and the command line that starts them."""
