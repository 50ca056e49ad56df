"""The service instance and the singletons below it: content, about, managers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from pyVmomi import vim, vmodl

from lab.vcenter.inventory import Inventory
from lab.vcenter.nodes import Node
from lab.vcenter.reflect import moid_of
from lab.vcenter.sessions import Session
from lab.vcenter.soap import API_VERSION

SERVICE_INSTANCE = vim.ServiceInstance("ServiceInstance")
PROPERTY_COLLECTOR = vmodl.query.PropertyCollector("propertyCollector")
SESSION_MANAGER = vim.SessionManager("SessionManager")
VIEW_MANAGER = vim.view.ViewManager("ViewManager")
SEARCH_INDEX = vim.SearchIndex("SearchIndex")
EVENT_MANAGER = vim.event.EventManager("EventManager")
TASK_MANAGER = vim.TaskManager("TaskManager")
AUTHORIZATION_MANAGER = vim.AuthorizationManager("AuthorizationManager")
CUSTOM_FIELDS_MANAGER = vim.CustomFieldsManager("CustomFieldsManager")
LICENSE_MANAGER = vim.LicenseManager("LicenseManager")
SETTING = vim.option.OptionManager("VpxSettings")

PRIVILEGES = (
    "System.Anonymous",
    "System.View",
    "System.Read",
    "Global.CancelTask",
    "Datastore.Browse",
    "Datastore.AllocateSpace",
    "Network.Assign",
    "Resource.AssignVMToPool",
    "Resource.ColdMigrate",
    "Resource.HotMigrate",
    "Sessions.TerminateSession",
    "Sessions.ValidateSession",
    "VirtualMachine.Config.AddExistingDisk",
    "VirtualMachine.Config.AddNewDisk",
    "VirtualMachine.Config.AdvancedConfig",
    "VirtualMachine.Config.Annotation",
    "VirtualMachine.Config.CPUCount",
    "VirtualMachine.Config.ChangeTracking",
    "VirtualMachine.Config.EditDevice",
    "VirtualMachine.Config.Memory",
    "VirtualMachine.Config.RemoveDisk",
    "VirtualMachine.Config.Rename",
    "VirtualMachine.Interact.PowerOff",
    "VirtualMachine.Interact.PowerOn",
    "VirtualMachine.Inventory.Delete",
    "VirtualMachine.Inventory.Register",
    "VirtualMachine.Inventory.Unregister",
    "VirtualMachine.Provisioning.DiskRandomRead",
    "VirtualMachine.State.CreateSnapshot",
    "VirtualMachine.State.RemoveSnapshot",
    "VirtualMachine.State.RenameSnapshot",
    "VirtualMachine.State.RevertToSnapshot",
)
"""The privilege ids that the lab knows; a user with `*` holds all of them."""


def about(inventory: Inventory) -> Any:
    """`AboutInfo` of a vCenter Server; `instanceUuid` is the data centre's and survives restarts."""
    return vim.AboutInfo(
        name="VMware vCenter Server",
        fullName="VMware vCenter Server 8.0.3 (safehaul lab)",
        vendor="VMware, Inc.",
        version="8.0.3",
        patchLevel="00100",
        build="24091160",
        localeVersion="INTL",
        localeBuild="000",
        osType="linux-x64",
        productLineId="vpx",
        apiType="VirtualCenter",
        apiVersion=API_VERSION,
        instanceUuid=inventory.state.instance_uuid,
        licenseProductName="VMware VirtualCenter Server",
        licenseProductVersion="8.0",
    )


def content(inventory: Inventory) -> Any:
    """`ServiceContent`; managers that the lab does not play are unset."""
    return vim.ServiceInstanceContent(
        rootFolder=inventory.root,
        propertyCollector=PROPERTY_COLLECTOR,
        viewManager=VIEW_MANAGER,
        about=about(inventory),
        setting=SETTING,
        sessionManager=SESSION_MANAGER,
        authorizationManager=AUTHORIZATION_MANAGER,
        eventManager=EVENT_MANAGER,
        taskManager=TASK_MANAGER,
        customFieldsManager=CUSTOM_FIELDS_MANAGER,
        licenseManager=LICENSE_MANAGER,
        searchIndex=SEARCH_INDEX,
    )


def _licenses() -> list[Any]:
    license_info = vim.LicenseManager.LicenseInfo
    return [
        license_info(
            licenseKey="00000-00000-00000-00000-00000",
            editionKey="eval",
            name="Evaluation Mode",
            total=0,
            costUnit="",
        )
    ]


def user_session(session: Session) -> Any:
    """A session as other users may see it: never its cookie."""
    return vim.UserSession(
        key=session.key,
        userName=session.user,
        fullName=session.user,
        loginTime=session.login_time,
        lastActiveTime=dt.datetime.now(dt.UTC),
        locale="en",
        messageLocale="en",
        extensionSession=False,
        ipAddress=session.address,
        userAgent=session.agent,
        callCount=session.calls,
    )


def service_nodes(
    inventory: Inventory,
    session: Session | None,
    sessions: Callable[[], list[Session]],
    latest_event: Callable[[], Any],
) -> dict[str, Node]:
    """The singletons by moid, as one session sees them."""
    nodes = [
        Node(
            SERVICE_INSTANCE,
            {
                "content": lambda: content(inventory),
                "serverClock": lambda: dt.datetime.now(dt.UTC),
                "capability": lambda: vim.Capability(
                    provisioningSupported=True,
                    multiHostSupported=True,
                    userShellAccessSupported=False,
                    supportedEVCMode=[],
                ),
            },
        ),
        Node(
            SESSION_MANAGER,
            {
                "currentSession": lambda: user_session(session) if session else None,
                "sessionList": lambda: [user_session(each) for each in sessions()],
                "defaultLocale": lambda: "en",
                "supportedLocaleList": lambda: ["en"],
                "messageLocaleList": lambda: ["en"],
            },
        ),
        Node(TASK_MANAGER, {"recentTask": inventory.latest_tasks, "maxCollector": lambda: 32}),
        Node(EVENT_MANAGER, {"latestEvent": latest_event, "maxCollector": lambda: 32}),
        Node(CUSTOM_FIELDS_MANAGER, {"field": lambda: inventory.custom_fields}),
        Node(LICENSE_MANAGER, {"licensedEdition": lambda: "vc.standard.instance", "licenses": _licenses}),
        Node(VIEW_MANAGER, {"viewList": list}),
        Node(SEARCH_INDEX, {}),
        Node(PROPERTY_COLLECTOR, {"filter": list}),
        Node(
            AUTHORIZATION_MANAGER,
            {
                "privilegeList": lambda: [
                    vim.AuthorizationManager.Privilege(
                        privId=each,
                        onParent=False,
                        name=each.rsplit(".", 1)[-1],
                        privGroupName=each.rsplit(".", 1)[0],
                    )
                    for each in PRIVILEGES
                ]
            },
        ),
        Node(
            SETTING,
            {
                "setting": lambda: [
                    vim.option.OptionValue(key="VirtualCenter.InstanceName", value=inventory.state.site),
                    vim.option.OptionValue(key="event.maxAge", value=30),
                ]
            },
        ),
    ]
    return {moid_of(each.reference): each for each in nodes}
