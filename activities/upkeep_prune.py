"""Pruning at the MediaAgent: forget by the rules, purge what was forgotten long ago, collect what nobody needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import TypeVar

from temporalio import activity

from activities.beat import beat
from activities.errors import step
from activities.forgotten_backups import bring_back, list_again
from activities.peers import Peers
from activities.records import tolerated
from activities.repositories import deleting, deleting_store_of, locks_of
from activities.retention_plan import VmPlan, plans
from safehaul.config.settings import Settings
from safehaul.errors import IntegrityError, NotFoundError
from safehaul.media import audit, forgotten
from safehaul.media.audit import Action
from safehaul.media.forgotten import RECOVERABLE_S
from safehaul.media.garbage import CollectOptions, collect
from safehaul.media.holds import held_backups, is_held
from safehaul.media.manifest import BackupRef, Manifest
from safehaul.media.object_lock import renew_locks
from safehaul.media.object_store import DeletingStore, store_time
from safehaul.media.repository import Repository
from safehaul.media.verified import drop_superseded
from safehaul.messages.prune import (
    MAX_BACKUPS_TOLD,
    MAX_PROBLEMS_TOLD,
    MAX_RULES_TOLD,
    Collected,
    ForgetPage,
    ForgottenItem,
    PruneStep,
    Purged,
    VmPruned,
    joined,
)
from safehaul.retention import Decision, kinds

ItemT = TypeVar("ItemT")
PIECE_S = 300.0
"""A piece of forgetting ends after this long; a cancel comes between two of them, or between two backups."""
BEAT_EVERY_S = 1.0
"""A heartbeat carries what the piece has to tell, which is large. A cancel is seen as often."""
AUDITED_AT_ONCE = 500
"""Backups in one entry of the audit log, which is one object."""


class UpkeepPrune:
    """Activities of the MediaAgent's queue for long work. Each may be run again, and goes on with what is left."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @step("forget_backups")
    def forget_backups(self, arg: PruneStep) -> ForgetPage:
        """Forgets, VM by VM, what no rule keeps; returns after some minutes, and tells where the next call goes on.

        A second run judges anew and finds forgotten what the first one forgot; what that had to tell comes with its
        heartbeats. Errors: the identity may not delete, which is found before anything is begun.
        """
        details = activity.info().heartbeat_details
        page = ForgetPage.model_validate(details[0]) if details else ForgetPage(after=arg.after)
        if arg.dry_run:
            return self._piece(arg, page, None)
        with deleting(self._peers.settings.media_agent(arg.media_agent)) as store:
            return self._piece(arg, page, store)

    def _piece(self, arg: PruneStep, page: ForgetPage, store: DeletingStore | None) -> ForgetPage:
        repository, began = self._peers.repository(arg.media_agent), time.monotonic()
        page = page.model_copy(update={"rules": rules_of(self._peers.settings, arg.media_agent)})
        pulse = _Pulse()
        for vm in plans(repository, self._peers.settings, after=page.after):
            pulse(page)
            problems = list(vm.problems)
            doomed = [item for item in vm.decisions if not item.keep]
            if store is not None:
                doomed = self._forget(repository, store, vm, partial(pulse, page), problems)
                refs = [BackupRef(vm.vc_guid, item.backup.backup_id) for item in doomed]
                self._drop_rows(arg.media_agent, refs, problems)
            page = joined(page, _told(vm, doomed, problems))
            if time.monotonic() - began > PIECE_S:
                return page
        return page.model_copy(update={"ended": True})

    def _forget(
        self,
        repository: Repository,
        store: DeletingStore,
        vm: VmPlan,
        pulse: Callable[[], None],
        problems: list[str],
    ) -> list[Decision]:
        """Forget what the plan says; returns what was forgotten. What cannot be is a problem, and stays."""
        done: list[Decision] = []
        for some in _batches([item for item in vm.decisions if not item.keep]):
            reasons = {item.backup.backup_id: item.why for item in some}
            audit.append(repository, Action.FORGET, vm.vc_guid, {"vm": vm.vm_name, "backups": reasons})
            for item in some:
                pulse()
                ref = BackupRef(vm.vc_guid, item.backup.backup_id)
                if is_held(repository, ref):
                    problems.append(f"backup {ref.vc_guid}/{ref.backup_id} was kept: somebody holds it now")
                    continue
                try:
                    forgotten.forget(repository, store, ref, item.why)
                except NotFoundError:
                    continue  # another run has forgotten and purged it
                except IntegrityError as error:
                    problems.append(f"backup {ref.vc_guid}/{ref.backup_id} was kept: {error}")
                    continue
                done.append(item)
        return done

    @step("purge_forgotten")
    def purge_forgotten(self, arg: PruneStep) -> Purged:
        """Gives up for good what was forgotten more than seven days ago, but for what is held: that is brought back.

        A second run finds less. Takes the catalogue's rows of all that is forgotten, for a run that was cut off.
        Errors: the identity may not delete.
        """
        repository = self._peers.repository(arg.media_agent)
        if arg.dry_run:
            return Purged(waiting=sum(1 for _ in forgotten.list_forgotten(repository)))
        problems: list[str] = []
        with deleting(self._peers.settings.media_agent(arg.media_agent)) as store:
            recovered = self._recover_held(arg.media_agent, repository, store, problems)
            found = list(forgotten.list_forgotten(repository))
            self._drop_rows(arg.media_agent, [item.ref for item in found], problems)
            now = store_time(store)
            due = [item.ref for item in found if now - item.forgotten_at >= RECOVERABLE_S]
            for some in _batches(due):
                names = [f"{ref.vc_guid}/{ref.backup_id}" for ref in some]
                audit.append(repository, Action.PURGE, arg.media_agent, {"backups": names})
            purged = forgotten.purge(repository, store, RECOVERABLE_S, beat) if due else []
        return Purged(
            purged=len(purged),
            recovered=recovered,
            waiting=len(found) - len(due),
            problems=problems[:MAX_PROBLEMS_TOLD],
        )

    def _recover_held(
        self, media_agent: str, repository: Repository, store: DeletingStore, problems: list[str]
    ) -> int:
        """Bring back what is held and was forgotten all the same: held after the last look, or when it was gone."""
        held = set(held_backups(repository))
        count = 0
        for ref in [item.ref for item in forgotten.list_forgotten(repository) if item.ref in held]:
            beat()
            try:
                manifest = bring_back(repository, store, ref, "it is held")
            except (IntegrityError, NotFoundError) as error:
                problems.append(
                    f"backup {ref.vc_guid}/{ref.backup_id} is held and cannot be recovered: {error}"
                )
                continue
            count += 1
            problem = tolerated(partial(self._list_again, repository, manifest, media_agent))
            if problem:
                problems.append(f"the catalogue does not list {ref.vc_guid}/{ref.backup_id} again: {problem}")
        return count

    @step("collect_garbage")
    def collect_garbage(self, arg: PruneStep) -> Collected:
        """One run of the collection: condemns what nobody needs, and deletes what was condemned long ago.

        Where the bucket has object locks, first those of everything else are renewed, when they are due.
        May be run again, beside backups, restores and other collections. Errors: the identity may not delete; a
        backup or a list of condemned packs cannot be read, and then nothing is collected.
        """
        repository = self._peers.repository(arg.media_agent)
        agent = self._peers.settings.media_agent(arg.media_agent)
        locked = 0
        if arg.dry_run:
            report = collect(repository, deleting_store_of(agent), CollectOptions(dry_run=True), beat)
        else:
            with deleting(agent) as store:
                audit.append(repository, Action.PRUNE, agent.name, {"workflow": activity.info().workflow_id})
                locks = locks_of(agent)
                if locks is not None:
                    locked = renew_locks(repository, store, locks, agent.s3_lock_days, beat)
                report = collect(repository, store, CollectOptions(), beat)
                drop_superseded(repository, store, int(time.time()), beat)
        numbers = report.model_dump(exclude={"dry_run"}) | {"objects_locked": locked}
        return Collected(freed_bytes=report.bytes_deleted, numbers=numbers)

    def _list_again(self, repository: Repository, manifest: Manifest, media_agent: str) -> None:
        list_again(repository, self._peers.catalog(), manifest, media_agent)

    def _drop_rows(self, media_agent: str, refs: Sequence[BackupRef], problems: list[str]) -> None:
        """The catalogue lists what can be restored."""
        problem = tolerated(partial(self._remove_rows, media_agent, refs)) if refs else ""
        if problem:
            problems.append(f"the catalogue still lists what was forgotten: {problem}")

    def _remove_rows(self, media_agent: str, refs: Sequence[BackupRef]) -> None:
        for vc_guid, of_vm in groupby(sorted(refs), lambda ref: ref.vc_guid):
            self._peers.catalog().remove_backups(media_agent, vc_guid, [ref.backup_id for ref in of_vm])


class _Pulse:
    """Heartbeats, and stops the step where it should, but not more often than is of use."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, page: ForgetPage) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + BEAT_EVERY_S
            beat(page)


def rules_of(settings: Settings, media_agent: str) -> dict[str, str]:
    """What each VM group of a MediaAgent keeps, in words; of the first ones only."""
    groups = [group for group in settings.vm_groups if group.media_agent == media_agent]
    return {group.name: str(group.retention) for group in groups[:MAX_RULES_TOLD]}


def _told(vm: VmPlan, doomed: list[Decision], problems: list[str]) -> ForgetPage:
    """What there is to say of one VM."""
    gone = {item.backup.backup_id for item in doomed}
    kept = [item for item in vm.decisions if item.backup.backup_id not in gone]
    told = VmPruned(
        vc_guid=vm.vc_guid,
        vm_name=vm.vm_name,
        forgotten=[
            ForgottenItem(backup_id=item.backup.backup_id, reason=item.why)
            for item in doomed[:MAX_BACKUPS_TOLD]
        ],
        forgotten_count=len(doomed),
        kept_count=len(kept),
        kept_for=kinds(kept),
    )
    return ForgetPage(
        after=vm.vc_guid,
        vms=1,
        backups=len(vm.decisions),
        forgotten=len(doomed),
        held=told.kept_for.get("legal hold", 0),
        told=[told],
        problems=problems,
    )


def _batches(items: Sequence[ItemT]) -> Iterator[Sequence[ItemT]]:
    for start in range(0, len(items), AUDITED_AT_ONCE):
        yield items[start : start + AUDITED_AT_ONCE]
