"""The settings of runs, and the files they are stored in."""

from lib.lazy import lazily

__getattr__, __dir__ = lazily(__name__, ("settings", "store"))
