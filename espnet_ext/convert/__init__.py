"""A trained model with multi-head attention, rewritten with another attention."""
