"""What a route declares, found in every form that FastAPI takes it in; what is in no known form is not complete."""

import functools
from types import SimpleNamespace
from typing import Annotated

import pytest
from fastapi import Cookie, Depends, FastAPI, Header, Security
from fastapi.security import APIKeyHeader, APIKeyQuery
from pydantic import AliasChoices, AliasPath, BaseModel

from swr.endpoints.declared import QUERY, Declared, declared


class Odd:
    """An alias of a kind that swr does not know."""


class Paths(BaseModel):
    token: Annotated[str, Header(validation_alias=AliasPath("x-path", 0))] = ""


def scope_of(*dependencies):
    app = FastAPI(dependencies=[Depends(dependency) for dependency in dependencies])
    app.get("/x")(lambda: None)
    return {"app": app, "route": app.routes[-1], "endpoint": app.routes[-1].endpoint}


def wrapped(function, times):
    for _ in range(times):
        function = wrapped_once(function)
    return function


def wrapped_once(function):
    @functools.wraps(function)
    def outer():
        return function()

    # `wraps` copies the attributes, too.
    outer.__dict__.pop("model", None)
    outer.__dict__.pop("scheme_name", None)
    return outer


def test_dependency_that_is_listed_twice_declares_its_field_once():
    def shared(x_a: Annotated[str, Header()] = "") -> None: ...
    def one(a: Annotated[None, Depends(shared)]) -> None: ...

    scope = scope_of(one)
    dependant = scope["route"].dependant
    dependant.dependencies.append(dependant.dependencies[0])
    assert declared(scope).fields == {"x-a"}


def test_first_part_of_alias_path_is_declared_as_field():
    def guard(headers: Annotated[Paths, Header()]) -> None: ...

    assert "x-path" in declared(scope_of(guard)).fields


@pytest.mark.parametrize("alias", [Odd(), SimpleNamespace(choices=None), AliasChoices("x-a", AliasPath(0))])
def test_alias_of_unknown_kind_makes_declaration_incomplete(alias):
    def guard(x_a: Annotated[str, Header()] = "") -> None: ...

    scope = scope_of(guard)
    parameter = scope["route"].dependant.dependencies[0].header_params[0]
    parameter.field_info.validation_alias = alias
    assert not declared(scope).is_complete


def test_cookie_parameter_declares_the_cookie_field():
    def guard(session: Annotated[str, Cookie()] = "") -> None: ...

    assert declared(scope_of(guard)).fields == {"cookie"}


def test_api_key_in_query_is_declared_as_parameter_not_field():
    key = frozenset({"key"})
    assert declared(scope_of(APIKeyQuery(name="key"))) == Declared(
        parameters=key, keys=key, guard_fields=frozenset({QUERY})
    )


def test_security_scheme_is_found_inside_5_wrappers_but_not_50():
    scheme = APIKeyHeader(name="X-Token")

    def call() -> str:
        return ""

    call.model, call.scheme_name = scheme.model, scheme.scheme_name
    for times, found in ((0, {"x-token"}), (5, {"x-token"}), (50, set())):

        def guard(key: Annotated[str, Security(wrapped(call, times))]) -> None: ...

        assert declared(scope_of(guard)).credentials == found


@pytest.mark.parametrize(
    ("scope", "is_complete"),
    [
        ({}, True),
        ({"app": FastAPI()}, False),
        ({"fastapi": {}}, False),
        ({"endpoint": print, "app": FastAPI()}, True),
        ({"endpoint": FastAPI()}, False),
        ({"endpoint": SimpleNamespace(app=SimpleNamespace(app=FastAPI()))}, False),
    ],
)
def test_fastapi_app_that_hides_its_routes_makes_declaration_incomplete(scope, is_complete):
    assert declared(scope).is_complete is is_complete


def test_app_that_contains_itself_ends_the_search():
    app = SimpleNamespace()
    app.app = app
    assert declared({"endpoint": app}).is_complete
