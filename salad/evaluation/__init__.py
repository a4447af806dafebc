"""Evaluation: multiple-choice items as text, as speech and through a cascade, scored the same way for everyone."""
