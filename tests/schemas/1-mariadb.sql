CREATE TABLE procore_webhook_event (
    id BIGINT NOT NULL AUTO_INCREMENT,
    endpoint VARCHAR(80) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    event_id VARCHAR(80) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    type VARCHAR(255) NOT NULL,
    resource_type VARCHAR(160),
    reason VARCHAR(80),
    resource_id VARCHAR(80) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    company_id VARCHAR(80),
    project_id VARCHAR(80),
    user_id VARCHAR(80),
    event_at DATETIME(6),
    `body` LONGBLOB,
    status VARCHAR(16) NOT NULL,
    attempts INTEGER NOT NULL,
    due_at DATETIME(6),
    lease VARCHAR(32),
    error TEXT,
    received_at DATETIME(6) NOT NULL,
    finished_at DATETIME(6),
    repeats INTEGER NOT NULL,
    conflicts INTEGER NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT uq_procore_webhook_event UNIQUE (endpoint, event_id)
)CHARSET=utf8mb4;

CREATE INDEX ix_procore_webhook_event_due ON procore_webhook_event (endpoint, due_at);

CREATE INDEX ix_procore_webhook_event_resource ON procore_webhook_event (resource_id, event_at);

CREATE TABLE procore_webhook_receipt (
    event BIGINT NOT NULL,
    subscriber VARCHAR(190) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    ending VARCHAR(16) NOT NULL,
    finished_at DATETIME(6) NOT NULL,
    PRIMARY KEY (event, subscriber)
)CHARSET=utf8mb4;

CREATE TABLE procore_webhook_journal (
    id BIGINT NOT NULL AUTO_INCREMENT,
    endpoint VARCHAR(80) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    action VARCHAR(16) NOT NULL,
    event BIGINT,
    at DATETIME(6) NOT NULL,
    actor VARCHAR(160) NOT NULL,
    PRIMARY KEY (id)
)CHARSET=utf8mb4;

CREATE INDEX ix_procore_webhook_journal_action ON procore_webhook_journal (endpoint, action, id);

CREATE INDEX ix_procore_webhook_journal_event ON procore_webhook_journal (event);
