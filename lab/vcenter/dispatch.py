"""From a SOAP call to the function that answers it: session, object, privilege, arguments, in this order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pyVmomi import VmomiSupport, vmodl

from lab.esx.client import HostFault, HostUnreachableError
from lab.vcenter.faults import fault_named, invalid_argument, not_authenticated, not_supported
from lab.vcenter.reflect import moid_of
from lab.vcenter.scope import Scope, VCenter
from lab.vcenter.service import PROPERTY_COLLECTOR, SERVICE_INSTANCE, SESSION_MANAGER
from lab.vcenter.sessions import Session
from lab.vcenter.soap import Call

Handler = Callable[["Invocation"], Any]
_LOG = logging.getLogger(__name__)


class DropConnection(Exception):  # noqa: N818 - a planned fault, no error of the front
    """The plan says: the call has taken effect, and the client must never get its answer."""


@dataclass
class Invocation:
    """One call on its way: what was asked, by whom, and what the transport must do beside answering."""

    vcenter: VCenter
    call: Call
    session: Session | None
    scope: Scope
    address: str
    agent: str
    is_client_gone: Callable[[], bool]
    new_session: Session | None = None
    """Set by a login: the answer carries its cookie."""
    closed_session: bool = False

    @property
    def target(self) -> Any:
        """The managed object that the call names."""
        return self.call.target

    @property
    def user(self) -> str:
        """The session's user; empty before a login."""
        return self.session.user if self.session else ""

    @property
    def own(self) -> Session:
        """The session; only methods that need none may find none."""
        if self.session is None:
            raise not_authenticated(self.target)
        return self.session

    def arg(self, name: str, default: Any = None) -> Any:
        """An argument by its WSDL name; `default` when it was left out."""
        value = self.call.arguments.get(name)
        return default if value is None else value


@dataclass(frozen=True)
class Method:
    """How a method is answered. `anonymous`: also without a session. `privilege`: demanded on the target."""

    handler: Handler
    privilege: str | None = None
    anonymous: bool = False


@dataclass
class Registry:
    """All methods by WSDL name."""

    methods: dict[str, Method] = field(default_factory=dict)

    def method(
        self, name: str, privilege: str | None = None, *, anonymous: bool = False
    ) -> Callable[[Handler], Handler]:
        """Decorator: the function answers the method `name`."""

        def register(handler: Handler) -> Handler:
            if name in self.methods:
                message = f"two handlers for {name}"
                raise ValueError(message)
            self.methods[name] = Method(handler, privilege, anonymous)
            return handler

        return register


def invoke(registry: Registry, invocation: Invocation) -> Any:
    """Answer a call; every refusal is a vim or vmodl fault, raised.

    Raises:
        DropConnection, updates.ClientGone, sessions.TooManySessionsError: for the transport.
    """
    call = invocation.call
    method = registry.methods.get(call.method)
    if invocation.session is None and not (method and method.anonymous and _is_public(call.target)):
        raise not_authenticated(call.target)
    if method is None:
        raise not_supported(call.method)
    if call.info is not None and not isinstance(call.target, call.info.type):
        raise vmodl.fault.MethodNotFound(
            msg=f"{call.method} is not a method of the object", receiver=call.target, method=call.method
        )
    invocation.scope.need(call.target)
    _check_arguments(call)
    if method.privilege is not None:
        invocation.scope.demand(method.privilege, call.target)
    try:
        return method.handler(invocation)
    except HostFault as refusal:
        fault = refusal.fault
        raise fault_named(fault.type, fault.message, fault.fields) from refusal
    except HostUnreachableError as error:
        raise vmodl.fault.HostNotReachable(msg="The host could not be reached.") from error


def _is_public(target: Any) -> bool:
    """Whether a caller without a session may address the object at all."""
    return moid_of(target) in {
        moid_of(each) for each in (SERVICE_INSTANCE, SESSION_MANAGER, PROPERTY_COLLECTOR)
    }


def _check_arguments(call: Call) -> None:
    for parameter in call.info.params if call.info is not None else ():
        if parameter.flags & VmomiSupport.F_OPTIONAL or parameter.name in call.arguments:
            continue
        if issubclass(parameter.type, list):
            continue  # an empty required array looks like a missing one
        raise invalid_argument(parameter.name, f"{call.method}: the parameter {parameter.name} is missing")
