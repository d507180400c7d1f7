"""A speech daemon: text in over Wyoming or HTTP, speech out, from one supervised engine worker."""

__version__ = "0.1.0"
