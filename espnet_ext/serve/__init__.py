"""A server of live streams, its page, and what speaks to it."""
