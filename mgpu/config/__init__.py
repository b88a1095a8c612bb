"""The configuration: its model, how it is read and checked, and what the core gets of it."""
