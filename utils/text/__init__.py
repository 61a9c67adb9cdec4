"""Paragraphs and their features: encoders, ready features and drafts."""
