"""The default policy of a cache, for loaders and endpoints that do not set their own times."""

from collections.abc import Mapping
from types import EllipsisType
from typing import Any

from swr.errors import ConfigurationError
from swr.policy import Policy


class DefaultPolicy:
    """The default policy from the options of a cache.

    Parameters:
        policy: the default policy, or None.

    Attributes:
        policy: the default policy of the current configuration, or None.
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
        """Return the default policy; from now on, the cache must have one.

        Parameters:
            who: the loader or endpoint that needs it, for the error.

        Raises:
            ConfigurationError: the cache has no default policy.
        """
        if self.policy is None:
            raise ConfigurationError(
                f"{who} does not say how long values may be served: give it fresh_for=60, or a policy to the cache, "
                f"Cache(policy=Policy(fresh_for=60, stale_for=600))"
            )
        self._is_needed = True
        return self.policy

    def of(self, policy: object) -> Policy:
        """Return `policy`, or the default policy if it is None.

        Raises:
            ConfigurationError: `policy` is not a policy, or is None and there is no default.
        """
        if policy is None:
            return self.need("a call without a policy")
        if not isinstance(policy, Policy):
            raise ConfigurationError(f"policy={policy!r} is not a Policy: give Policy(fresh_for=60, stale_for=600)")
        return policy


class DecoratorPolicy:
    """The policy of a decorator: the arguments that it sets, and the cache's default for the rest.

    Parameters:
        default: the default of the cache.
        given: arguments of `Policy` by name; `...` for those that the decorator does not set.
        who: the decorator, for errors.

    Raises:
        ConfigurationError: an argument cannot work, or neither the decorator nor the cache sets `fresh_for`.
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
        """The policy under the current configuration of the cache."""
        default = self._default.policy
        if default is not self._default_then:
            self._default_then, self._now = default, self._over(default)
        return self._now

    def change(self, **said: Any) -> None:
        """Set these arguments of `Policy` for the decorator, unchecked."""
        self._changes |= said
        self._now = self._over(self._default_then)

    def _over(self, default: Policy | None) -> Policy:
        return (default or Policy(0)).replaced(**self._changes)
