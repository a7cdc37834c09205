"""What the papers claim, beside what was measured."""

from lib.lazy import lazily

__getattr__, __dir__ = lazily(__name__, ("differences", "ledger", "measured", "recipes", "tables"))
