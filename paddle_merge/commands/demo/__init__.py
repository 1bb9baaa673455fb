"""The command `demo`: train small networks, merge them by every method, and show the results."""
