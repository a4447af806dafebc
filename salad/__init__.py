"""SALAD (arXiv 2510.13632): adapt a text LLM to speech by cross-modal distillation and active selection."""

from salad.errors import SaladError

__all__ = ["SaladError"]
