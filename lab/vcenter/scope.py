"""What one call sees: the inventory of this moment, its session and that session's own objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyVmomi import vim

from lab.esx.api import Labels
from lab.esx.client import HostClient
from lab.vcenter.calllog import CallLog
from lab.vcenter.events import latest_event
from lab.vcenter.faults import no_permission, not_authenticated, object_gone
from lab.vcenter.inventory import Inventory
from lab.vcenter.mirror import Mirror
from lab.vcenter.nodes import Node
from lab.vcenter.reflect import moid_of
from lab.vcenter.service import PRIVILEGES, SERVICE_INSTANCE, SESSION_MANAGER, service_nodes
from lab.vcenter.sessions import Session, SessionTable
from lab.vcenter.tasks import LocalTasks

_ANONYMOUS_PROPERTIES = {
    (moid_of(SERVICE_INSTANCE), "content"),
    (moid_of(SERVICE_INSTANCE), "serverClock"),
    (moid_of(SESSION_MANAGER), "currentSession"),
    (moid_of(SESSION_MANAGER), "defaultLocale"),
    (moid_of(SESSION_MANAGER), "supportedLocaleList"),
}
"""What the API reference marks with the privilege System.Anonymous."""
_IMPLIED = {"System.Anonymous", "System.View"}


class VCenter:
    """What all calls share: the hosts, their mirror, the sessions and the call log."""

    def __init__(self, hosts: HostClient, sessions: SessionTable, log: CallLog) -> None:
        self.hosts = hosts
        self.mirror = Mirror(hosts)
        self.sessions = sessions
        self.local_tasks = LocalTasks()
        self.log = log

    def scope(self, session: Session | None) -> Scope:
        """A view on this very moment."""
        return Scope(self, session, self.mirror.inventory())


class Scope:
    """Finds every managed object that a call may name, and checks what its user may do."""

    def __init__(self, vcenter: VCenter, session: Session | None, inventory: Inventory) -> None:
        self.vcenter = vcenter
        self.session = session
        self.inventory = inventory
        self._services: dict[str, Node] | None = None

    @property
    def labels(self) -> Labels:
        """The definitions of tags and custom attributes."""
        return self.inventory.state.labels

    def find(self, reference: Any) -> Node | None:
        """The node of `reference`, or None when there is no such object."""
        moid = moid_of(reference)
        if self.session is not None and moid in self.session.objects:
            node: Node = self.session.objects[moid].node(self)
            return node if isinstance(node.reference, type(reference)) else None
        service = self._service_nodes().get(moid)
        if service is not None:
            return service if isinstance(service.reference, type(reference)) else None
        return self.inventory.find(reference) or self.vcenter.local_tasks.find(reference)

    def need(self, reference: Any) -> Node:
        """Like `find`, but raises ManagedObjectNotFound."""
        node = self.find(reference)
        if node is None:
            raise object_gone(reference)
        return node

    def privileges(self, user: str | None = None) -> set[str]:
        """The privilege ids that a user holds (default: the session's)."""
        name = user if user is not None else self.session.user if self.session else ""
        held = next((each.privileges for each in self.inventory.state.users if each.name == name), [])
        return set(PRIVILEGES) | set(held) if "*" in held else set(held) | _IMPLIED

    def demand(self, privilege: str, target: Any) -> None:
        """Raise NoPermission unless the session's user holds `privilege`."""
        if privilege not in self.privileges():
            raise no_permission(target, privilege)

    @property
    def guard(self) -> Callable[[Node, str], Any]:
        """Tells the fault that keeps this caller from reading a property, or None."""
        session, may_read = self.session, "System.Read" in self.privileges()

        def check(node: Node, path: str) -> Any:
            if session is None:
                public = (moid_of(node.reference), path.split(".", 1)[0]) in _ANONYMOUS_PROPERTIES
                return None if public else not_authenticated(node.reference)
            if isinstance(node.reference, (vim.ManagedEntity, vim.vm.Snapshot)) and not may_read:
                return no_permission(node.reference, "System.Read")
            return None

        return check

    def _service_nodes(self) -> dict[str, Node]:
        if self._services is None:
            self._services = service_nodes(
                self.inventory,
                self.session,
                self.vcenter.sessions.listed,
                lambda: latest_event(self.vcenter.hosts, self.inventory),
            )
        return self._services
