-- The tables as the last safehaul without migrations made them in SQLite; in PostgreSQL version was a BIGSERIAL.
CREATE TABLE backups (
    vc_guid VARCHAR(300) NOT NULL,
    backup_id VARCHAR(300) NOT NULL,
    media_agent VARCHAR(100) NOT NULL,
    vm_name TEXT NOT NULL,
    vm_group TEXT NOT NULL,
    job_id TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    access_node TEXT NOT NULL,
    vcenter TEXT NOT NULL,
    snapshot_created TEXT NOT NULL,
    committed TEXT NOT NULL,
    capacity_bytes BIGINT NOT NULL,
    read_bytes BIGINT NOT NULL,
    stored_bytes BIGINT NOT NULL,
    warnings TEXT NOT NULL,
    PRIMARY KEY (vc_guid, backup_id, media_agent)
);
CREATE INDEX backups_by_group ON backups (vm_group, committed);
CREATE INDEX backups_by_time ON backups (committed);
CREATE INDEX backups_by_vm ON backups (vm_name, committed);
CREATE TABLE job_vms (
    job_id VARCHAR(100) NOT NULL,
    vc_guid VARCHAR(300) NOT NULL,
    vm_name TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    access_node TEXT NOT NULL,
    backup_id TEXT NOT NULL,
    read_bytes BIGINT NOT NULL,
    stored_bytes BIGINT NOT NULL,
    PRIMARY KEY (job_id, vc_guid)
);
CREATE TABLE jobs (
    job_id VARCHAR(100) NOT NULL,
    workflow_id TEXT NOT NULL,
    vm_group TEXT NOT NULL,
    status TEXT NOT NULL,
    reason TEXT NOT NULL,
    coordinator TEXT NOT NULL,
    started TEXT NOT NULL,
    ended TEXT NOT NULL,
    vms BIGINT NOT NULL,
    completed BIGINT NOT NULL,
    partial BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    cancelled BIGINT NOT NULL,
    read_bytes BIGINT NOT NULL,
    stored_bytes BIGINT NOT NULL,
    PRIMARY KEY (job_id)
);
CREATE INDEX jobs_by_time ON jobs (started);
CREATE TABLE schema_version (
    version BIGINT NOT NULL,
    PRIMARY KEY (version)
);
CREATE TABLE disks (
    vc_guid VARCHAR(300) NOT NULL,
    backup_id VARCHAR(300) NOT NULL,
    media_agent VARCHAR(100) NOT NULL,
    "key" BIGINT NOT NULL,
    label TEXT NOT NULL,
    transport TEXT NOT NULL,
    reason TEXT NOT NULL,
    capacity_bytes BIGINT NOT NULL,
    read_bytes BIGINT NOT NULL,
    stored_bytes BIGINT NOT NULL,
    PRIMARY KEY (vc_guid, backup_id, media_agent, "key"),
    FOREIGN KEY(vc_guid, backup_id, media_agent) REFERENCES backups (vc_guid, backup_id, media_agent) ON DELETE CASCADE
);
INSERT INTO schema_version VALUES (1);
INSERT INTO backups VALUES ('guid-1', '20260101T000000Z-x', 'vault', 'WEB_ß', 'nightly', 'job-1', 'Completed', '', 'node-1', 'vc', '', '20260101T000100Z', 7, 6, 5, '["w"]');
INSERT INTO backups VALUES ('guid-1', '20260102T000000Z-x', 'vault', 'WEB_ß', 'nightly', 'job-2', 'Partial', 'r', 'node-1', 'vc', '', '20260102T000100Z', 7, 6, 5, '[]');
INSERT INTO disks VALUES ('guid-1', '20260101T000000Z-x', 'vault', 2000, 'Hard disk 1', 'nas', '', 7, 6, 5);
INSERT INTO jobs VALUES ('job-1', 'nightly-1', 'nightly', 'Completed', '', 'node-1', '2026-01-01T00:00:00+00:00', '2026-01-01T01:00:00+00:00', 1, 1, 0, 0, 0, 6, 5);
INSERT INTO job_vms VALUES ('job-1', 'guid-1', 'WEB_ß', 'Completed', '', 'node-1', '20260101T000000Z-x', 6, 5);
