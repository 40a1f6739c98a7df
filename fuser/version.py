"""The version: the distribution's is read from here."""

__version__ = "0.1.0"
