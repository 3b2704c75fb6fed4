"""Write a graph of models in Python; run it on Ray Serve; upgrade each model on its own."""

__version__ = "0.1.0.dev0"
