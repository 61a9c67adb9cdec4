"""The network and its operations."""
