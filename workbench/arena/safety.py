"""What the app refuses of what it is given: files that were not uploaded to it, and users' errors in more than a line."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import gradio as gr

import store
from workbench.arena import uploads


def _one_line(error: Exception) -> gr.Error:
    return gr.Error(" ".join(str(error).split()), print_exception=False, duration=8, title="")


def refuse_foreign_files(value: Any) -> None:
    """Only what was uploaded to this app may be an input, in whatever shape it is named: Gradio would fetch a URL, read a
    path, and take a number for a descriptor."""
    if isinstance(value, dict):
        if value.get("path") is not None:
            try:
                uploads.uploaded(value["path"])
            except store.UserError as error:
                raise _one_line(error) from None
        for part in value.values():
            refuse_foreign_files(part)
    elif isinstance(value, list | tuple):
        for part in value:
            refuse_foreign_files(part)


def plainly(function: Callable) -> Callable:
    """Users' errors become the page's own messages, in one line."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            try:
                yield from function(*args, **kwargs)
            except store.UserError as error:
                raise _one_line(error) from None

    else:

        @functools.wraps(function)
        def wrapped(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except store.UserError as error:
                raise _one_line(error) from None

    return wrapped
