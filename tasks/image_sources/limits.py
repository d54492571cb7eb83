"""How long one image may be waited for; tasks/storage/backends.py says how long a server may be silent."""

# However slowly the file comes: 75 MB over a line of 1 Mbit/s take that long.
READ_SECONDS = 600.0
