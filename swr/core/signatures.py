"""Signatures and annotations of functions whose annotations may name types that are not defined.

Until Python 3.13, such an annotation is text, written so or by `from __future__ import annotations`. From Python 3.14
on, it is evaluated when it is read. The type may be defined further down, or imported only for type checkers.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any, Final, ForwardRef

# Python 3.14 then evaluates what is defined, and represents the rest by a `ForwardRef` instead of raising a NameError.
_FORMAT: Final[Any] = None if sys.version_info < (3, 14) else importlib.import_module("annotationlib").Format.FORWARDREF
_OF_SIGNATURE: Final[dict[str, Any]] = {} if _FORMAT is None else {"annotation_format": _FORMAT}
_OF_ANNOTATIONS: Final[dict[str, Any]] = {} if _FORMAT is None else {"format": _FORMAT}


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function. An annotation that names an undefined type is text in it."""
    signature = inspect.signature(function, **_OF_SIGNATURE)
    parameters = signature.parameters.values()
    if not any(isinstance(parameter.annotation, ForwardRef) for parameter in parameters):
        return signature
    return signature.replace(parameters=[_with_text(parameter) for parameter in parameters])


def annotations_of(function: Any) -> dict[str, Any]:
    """Return the annotations of a function by parameter; {}: it has none."""
    return inspect.get_annotations(function, **_OF_ANNOTATIONS) if callable(function) else {}


def _with_text(parameter: inspect.Parameter) -> inspect.Parameter:
    annotation = parameter.annotation
    return parameter.replace(annotation=annotation.__forward_arg__) if isinstance(annotation, ForwardRef) else parameter
