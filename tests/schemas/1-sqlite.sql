CREATE TABLE procore_webhook_event (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    endpoint VARCHAR(80) NOT NULL,
    event_id VARCHAR(80) NOT NULL,
    type VARCHAR(255) NOT NULL,
    resource_type VARCHAR(160),
    reason VARCHAR(80),
    resource_id VARCHAR(80),
    company_id VARCHAR(80),
    project_id VARCHAR(80),
    user_id VARCHAR(80),
    event_at DATETIME,
    body BLOB,
    status VARCHAR(16) NOT NULL,
    attempts INTEGER NOT NULL,
    due_at DATETIME,
    lease VARCHAR(32),
    error TEXT,
    received_at DATETIME NOT NULL,
    finished_at DATETIME,
    repeats INTEGER NOT NULL,
    conflicts INTEGER NOT NULL,
    CONSTRAINT uq_procore_webhook_event UNIQUE (endpoint, event_id)
);

CREATE INDEX ix_procore_webhook_event_due ON procore_webhook_event (endpoint, due_at) WHERE due_at IS NOT NULL;

CREATE INDEX ix_procore_webhook_event_resource ON procore_webhook_event (resource_id, event_at);

CREATE TABLE procore_webhook_receipt (
    event INTEGER NOT NULL,
    subscriber VARCHAR(190) NOT NULL,
    ending VARCHAR(16) NOT NULL,
    finished_at DATETIME NOT NULL,
    PRIMARY KEY (event, subscriber)
);

CREATE TABLE procore_webhook_journal (
    id INTEGER NOT NULL,
    endpoint VARCHAR(80) NOT NULL,
    action VARCHAR(16) NOT NULL,
    event INTEGER,
    at DATETIME NOT NULL,
    actor VARCHAR(160) NOT NULL,
    PRIMARY KEY (id)
);

CREATE INDEX ix_procore_webhook_journal_action ON procore_webhook_journal (endpoint, action, id);

CREATE INDEX ix_procore_webhook_journal_event ON procore_webhook_journal (event);
