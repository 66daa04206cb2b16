"""The policy of a cache, for what says nothing of its own."""

from collections.abc import Mapping
from types import EllipsisType
from typing import Any

from swr.errors import ConfigurationError
from swr.policy import Policy


class DefaultPolicy:
    """The policy that the options of a cache name.

    Parameters:
        policy: None: there is none.

    Attributes:
        policy: as the cache is configured now.
    """

    __slots__ = ("_is_needed", "policy")

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy
        self._is_needed = False

    def check(self, policy: object) -> Policy | None:
        """Return `policy` if it can be the default from now on.

        Raises:
            ConfigurationError: it is not a policy, has tags, or is None while something uses the default.
        """
        if policy is None and self._is_needed:
            raise ConfigurationError(
                "policy=None: a loader or endpoint of this cache has no fresh_for of its own, and needs the policy of "
                "the cache"
            )
        if not isinstance(policy, Policy | None):
            raise ConfigurationError(f"policy={policy!r} is not a Policy: give Policy(fresh_for=60, stale_for=600)")
        if policy is not None and policy.tags:
            raise ConfigurationError(
                f"the policy of a cache has the tags {policy.tags!r}: give them to loaders; cache.clear() outdates all"
            )
        return policy

    def need(self, who: str) -> Policy:
        """Return the policy, which must exist from now on.

        Parameters:
            who: named in the error; it has no policy of its own.

        Raises:
            ConfigurationError: there is none.
        """
        if self.policy is None:
            raise ConfigurationError(
                f"{who} says nothing of how long values may be served: give it fresh_for=60, or a policy to the cache, "
                f"Cache(policy=Policy(fresh_for=60, stale_for=600))"
            )
        self._is_needed = True
        return self.policy

    def of(self, policy: object) -> Policy:
        """Return `policy`, or this one if it is None.

        Raises:
            ConfigurationError: it is not a policy, or there is none.
        """
        if policy is None:
            return self.need("a call without a policy")
        if not isinstance(policy, Policy):
            raise ConfigurationError(f"policy={policy!r} is not a Policy: give Policy(fresh_for=60, stale_for=600)")
        return policy


class DecoratorPolicy:
    """The times that a decorator says, and the cache's default for the rest.

    Parameters:
        default: of the cache.
        given: the arguments of `Policy` by name; `...` where the decorator says nothing.
        who: the decorator, for errors.

    Raises:
        ConfigurationError: one of them cannot work, or neither says how long a value is fresh.
    """

    __slots__ = ("_changes", "_default", "_default_then", "_now")

    def __init__(self, default: DefaultPolicy, given: Mapping[str, Any], who: str) -> None:
        said = {name: value for name, value in given.items() if not isinstance(value, EllipsisType)}
        checked = Policy(**{"fresh_for": 0, **said})
        self._default = default
        if "fresh_for" not in said:
            default.need(who)
        self._changes = {name: getattr(checked, name) for name in said}
        self._default_then = default.policy
        self._now = self._over(default.policy)

    @property
    def now(self) -> Policy:
        """The policy, as the cache is configured."""
        default = self._default.policy
        if default is not self._default_then:
            self._default_then, self._now = default, self._over(default)
        return self._now

    def change(self, **said: Any) -> None:
        """Give the decorator these arguments of `Policy`, unchecked."""
        self._changes |= said
        self._now = self._over(self._default_then)

    def _over(self, default: Policy | None) -> Policy:
        return (default or Policy(0)).replaced(**self._changes)
