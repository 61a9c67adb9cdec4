"""Paragraphs and their features: encoders, ready features and captions."""
