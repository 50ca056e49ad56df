"""ServiceInstance, SessionManager, AuthorizationManager."""

from __future__ import annotations

import datetime as dt
from typing import Any

from pyVmomi import vim

from lab.esx.client import HostFault
from lab.vcenter.dispatch import Invocation, Registry
from lab.vcenter.faults import invalid_argument, no_permission, not_supported
from lab.vcenter.service import content, user_session


def register(registry: Registry) -> None:
    """Add these methods."""
    registry.method("RetrieveServiceContent", anonymous=True)(_service_content)
    registry.method("CurrentTime")(_current_time)
    registry.method("Login", anonymous=True)(_login)
    registry.method("Logout")(_logout)
    registry.method("SessionIsActive", "Sessions.ValidateSession")(_session_is_active)
    registry.method("TerminateSession", "Sessions.TerminateSession")(_terminate)
    registry.method("HasPrivilegeOnEntities")(_has_privileges)
    registry.method("FetchUserPrivilegeOnEntities")(_user_privileges)


def _service_content(invocation: Invocation) -> Any:
    return content(invocation.scope.inventory)


def _current_time(_invocation: Invocation) -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _login(invocation: Invocation) -> Any:
    if invocation.session is not None:
        # A second login on a live session: vCenter refuses it with InvalidLogin too.
        raise vim.fault.InvalidLogin(msg="The session is already logged in.")
    user, password = invocation.arg("userName", ""), invocation.arg("password", "")
    sessions = invocation.vcenter.sessions
    refused = vim.fault.InvalidLogin(msg="Cannot complete login due to an incorrect user name or password.")
    if sessions.is_locked(user):
        raise refused
    try:
        known = invocation.vcenter.hosts.login(user, password)
    except HostFault as error:
        if error.fault.type != "InvalidLogin":
            raise
        sessions.note_failure(user)
        raise refused from None
    session = sessions.open(known.name, invocation.address, invocation.agent)
    invocation.new_session = session
    return user_session(session)


def _logout(invocation: Invocation) -> None:
    invocation.vcenter.sessions.close(invocation.own)
    invocation.closed_session = True


def _session_is_active(invocation: Invocation) -> bool:
    key, user = invocation.arg("sessionID", ""), invocation.arg("userName", "")
    return any(each.key == key and each.user == user for each in invocation.vcenter.sessions.listed())


def _terminate(invocation: Invocation) -> None:
    own = invocation.own
    for key in invocation.arg("sessionId", []):
        if key == own.key:
            raise invalid_argument("sessionId", "the own session is ended by Logout")
        if invocation.vcenter.sessions.close_by_key(key) is None:
            raise vim.fault.NotFound(msg=f"There is no session {key!r}")


def _has_privileges(invocation: Invocation) -> list[Any]:
    key = invocation.arg("sessionId", "")
    session = next((each for each in invocation.vcenter.sessions.listed() if each.key == key), None)
    if session is None:
        raise invalid_argument("sessionId", "there is no such session")
    if session is not invocation.session and "Sessions.TerminateSession" not in invocation.scope.privileges():
        raise no_permission(invocation.target, "Sessions.TerminateSession")
    held = invocation.scope.privileges(session.user)
    kinds = vim.AuthorizationManager
    answers = []
    for entity in _entities(invocation, "entity"):
        granted = [
            kinds.PrivilegeAvailability(privId=each, isGranted=each in held)
            for each in invocation.arg("privId", [])
        ]
        answers.append(kinds.EntityPrivilege(entity=entity, privAvailability=granted))
    return answers


def _user_privileges(invocation: Invocation) -> list[Any]:
    user = invocation.arg("userName", "")
    if user != invocation.user and "*" not in _held(invocation):
        raise not_supported("the privileges of another user")
    held = sorted(invocation.scope.privileges(user))
    return [
        vim.AuthorizationManager.UserPrivilegeResult(entity=each, privileges=held)
        for each in _entities(invocation, "entities")
    ]


def _held(invocation: Invocation) -> list[str]:
    users = invocation.scope.inventory.state.users
    return next((each.privileges for each in users if each.name == invocation.user), [])


def _entities(invocation: Invocation, name: str) -> list[Any]:
    return [invocation.scope.need(each).reference for each in invocation.arg(name, [])]
