"""Options that commands share, as click decorators."""
