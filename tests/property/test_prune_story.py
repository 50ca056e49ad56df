"""Goal: in whatever order backups, holds, prunes and recoveries come, what must be readable is, and equal."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from temporalio.testing import ActivityEnvironment

from activities.upkeep_prune import UpkeepPrune
from safehaul.errors import AlreadyExistsError
from safehaul.media import forgotten, holds
from safehaul.media.garbage import CollectOptions, collect
from safehaul.media.manifest import BackupRef, forgotten_name, list_backups, read_index
from safehaul.media.store_local import LocalStore
from safehaul.messages.prune import PruneStep
from tests.unit.media_backup import restore
from tests.unit.retained_site import add_backup, listed, make_site, set_age

pytestmark = pytest.mark.slow
STEP = PruneStep(media_agent="vault")
VMS = ("vc.a", "vc.b")


class PruneStory(RuleBasedStateMachine):
    """A repository and what its user must find in it."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="safehaul-prune-story-"))
        self.images: dict[BackupRef, bytes] = {}
        self.number = 0
        """Of the backups: each has bytes of its own and some of its VM's."""

    @initialize()
    def begin(self) -> None:
        _, self.peers = make_site(self.home, "[vm_groups.retention]\ndaily = 2\nweekly = 1\n")
        self.repository = self.peers.repository("vault")
        assert isinstance(self.repository.store, LocalStore)
        self.store = self.repository.store
        self.steps = UpkeepPrune(self.peers)

    def teardown(self) -> None:
        if hasattr(self, "peers"):
            self.peers.close()
        shutil.rmtree(self.home, ignore_errors=True)

    @rule(
        vm=st.sampled_from(VMS),
        days=st.integers(0, 30),
        status=st.sampled_from(["Completed", "Completed", "Partial", "Failed", None]),
    )
    def back_up(self, vm: str, days: int, status: str | None) -> None:
        self.number += 1
        image = vm.encode() * 3000 + bytes([self.number % 251]) * 9000
        ref = add_backup(self.peers, days + self.number / 1000, vc_guid=vm, status=status, image=image)
        self.images[ref] = image

    def _some(self, data: st.DataObject) -> BackupRef:
        return data.draw(st.sampled_from(sorted(self.images)))

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        with suppress(AlreadyExistsError):
            holds.place_hold(self.repository, self._some(data), "jo@office", "case 7")

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        holds.release_hold(self.store, self._some(data))

    @rule()
    def forget(self) -> None:
        before = set(list_backups(self.repository))
        held = set(holds.held_backups(self.repository))
        page = ActivityEnvironment().run(self.steps.forget_backups, STEP)
        after = set(list_backups(self.repository))
        assert len(before - after) == page.forgotten
        assert not (before & held) - after
        for vm in VMS:
            completed = [
                ref
                for ref in before
                if ref.vc_guid == vm
                and (index := read_index(self.repository, ref)) is not None
                and index.status == "Completed"
            ]
            assert not completed or max(completed, key=lambda ref: ref.backup_id) in after
        assert ActivityEnvironment().run(self.steps.forget_backups, STEP).forgotten == 0

    @rule(old=st.booleans())
    def purge(self, old: bool) -> None:
        found = [item.ref for item in forgotten.list_forgotten(self.repository)]
        held = set(holds.held_backups(self.repository))
        if old:
            for ref in found:
                set_age(self.repository, forgotten_name(ref), timedelta(days=8))
        ActivityEnvironment().run(self.steps.purge_forgotten, STEP)
        assert held & set(found) <= set(list_backups(self.repository))
        if old:
            for ref in set(found) - held:
                del self.images[ref]

    @precondition(lambda self: any(True for _ in forgotten.list_forgotten(self.repository)))
    @rule(data=st.data())
    def recover(self, data: st.DataObject) -> None:
        refs = sorted(item.ref for item in forgotten.list_forgotten(self.repository))
        ref = data.draw(st.sampled_from(refs))
        forgotten.recover(self.repository, self.store, ref)
        assert restore(self.repository, ref) == self.images[ref]

    @rule()
    def collect_at_once(self) -> None:
        for _ in range(2):
            collect(self.repository, self.store, CollectOptions(grace_s=0.0))

    @invariant()
    def all_that_must_be_there_is_there_and_equal(self) -> None:
        if not hasattr(self, "repository"):
            return
        there = set(list_backups(self.repository))
        gone = {item.ref for item in forgotten.list_forgotten(self.repository)}
        assert there | gone == set(self.images)
        for ref in there:
            assert restore(self.repository, ref) == self.images[ref]

    @rule()
    def the_catalogue_lists_no_more_than_there_is(self) -> None:
        assert set(listed(self.peers)) <= {ref.backup_id for ref in list_backups(self.repository)}


TestPruneStory = PruneStory.TestCase
TestPruneStory.settings = settings(
    max_examples=25, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
