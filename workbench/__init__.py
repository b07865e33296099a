"""A terminal workbench that finetunes every weight of a language model on small hardware."""

__version__ = "0.1.0"
