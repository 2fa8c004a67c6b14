CREATE TABLE procore_webhook_event (
    id bigint NOT NULL,
    endpoint character varying(80) NOT NULL,
    event_id character varying(80) NOT NULL,
    type character varying(255) NOT NULL,
    resource_type character varying(160),
    reason character varying(80),
    resource_id character varying(80),
    company_id character varying(80),
    project_id character varying(80),
    user_id character varying(80),
    event_at timestamp without time zone,
    body bytea,
    status character varying(16) NOT NULL,
    attempts integer NOT NULL,
    claims integer DEFAULT 0 NOT NULL,
    due_at timestamp without time zone,
    lease character varying(32),
    error text,
    received_at timestamp without time zone NOT NULL,
    finished_at timestamp without time zone,
    repeats integer NOT NULL,
    conflicts integer NOT NULL
);
CREATE SEQUENCE procore_webhook_event_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE procore_webhook_event_id_seq OWNED BY procore_webhook_event.id;
CREATE TABLE procore_webhook_journal (
    id bigint NOT NULL,
    endpoint character varying(80) NOT NULL,
    action character varying(16) NOT NULL,
    event bigint,
    at timestamp without time zone NOT NULL,
    actor character varying(160) NOT NULL
);
CREATE SEQUENCE procore_webhook_journal_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE procore_webhook_journal_id_seq OWNED BY procore_webhook_journal.id;
CREATE TABLE procore_webhook_receipt (
    event bigint NOT NULL,
    subscriber character varying(190) NOT NULL,
    ending character varying(16) NOT NULL,
    version integer DEFAULT 0 NOT NULL,
    finished_at timestamp without time zone NOT NULL
);
CREATE TABLE procore_webhook_state (
    endpoint character varying(80) NOT NULL,
    name character varying(190) NOT NULL,
    value text NOT NULL,
    at timestamp without time zone NOT NULL
);
ALTER TABLE ONLY procore_webhook_event ALTER COLUMN id SET DEFAULT nextval('procore_webhook_event_id_seq'::regclass);
ALTER TABLE ONLY procore_webhook_journal ALTER COLUMN id SET DEFAULT nextval('procore_webhook_journal_id_seq'::regclass);
INSERT INTO procore_webhook_event VALUES (1, 'procore_webhooks', 'evt_dead', 'RFIs.update', 'RFIs', 'update', '7', '2001', '3001', '1001', '2025-06-02 08:00:00', '\x7b226964223a226576745f64656164222c2274797065223a22524649732e757064617465222c2263726561746564223a313734383835313230302c2264617461223a7b227265736f757263655f6964223a2237222c22636f6d70616e795f6964223a323030312c2270726f6a6563745f6964223a333030312c22757365725f6964223a313030317d7d', 'dead', 3, 0, NULL, NULL, 'flaky: ValueError: broken', '2025-06-02 08:00:00', '2025-06-02 08:00:47', 0, 0);
INSERT INTO procore_webhook_event VALUES (3, 'procore_webhooks', 'evt_hung_dead', 'RFIs.update', 'RFIs', 'update', '7', '2001', '3001', '1001', '2025-06-02 08:00:00', '\x7b226964223a226576745f68756e675f64656164222c2274797065223a22524649732e757064617465222c2263726561746564223a313734383835313230302c2264617461223a7b227265736f757263655f6964223a2237222c22636f6d70616e795f6964223a323030312c2270726f6a6563745f6964223a333030312c22757365725f6964223a313030317d7d', 'dead', 3, 0, NULL, NULL, 'slow: no answer within 0.6 s (timeout)', '2025-06-02 08:00:00', '2025-06-02 08:00:30', 0, 0);
INSERT INTO procore_webhook_event VALUES (4, 'procore_webhooks', 'evt_superseded', 'Daily Logs.update', 'Daily Logs', 'update', '5', '2001', '3001', '1001', '2025-06-02 08:00:45', '\x7b226964223a226576745f73757065727365646564222c2274797065223a224461696c79204c6f67732e757064617465222c2263726561746564223a313734383835313234352c2264617461223a7b227265736f757263655f6964223a2235222c22636f6d70616e795f6964223a323030312c2270726f6a6563745f6964223a333030312c22757365725f6964223a313030317d7d', 'done', 1, 0, NULL, NULL, NULL, '2025-06-02 08:00:45', '2025-06-02 08:00:47', 0, 0);
INSERT INTO procore_webhook_event VALUES (5, 'procore_webhooks', 'evt_newer', 'Daily Logs.update', 'Daily Logs', 'update', '5', '2001', '3001', '1001', '2025-06-02 08:00:46', '\x7b226964223a226576745f6e65776572222c2274797065223a224461696c79204c6f67732e757064617465222c2263726561746564223a313734383835313234362c2264617461223a7b227265736f757263655f6964223a2235222c22636f6d70616e795f6964223a323030312c2270726f6a6563745f6964223a333030312c22757365725f6964223a313030317d7d', 'done', 1, 0, NULL, NULL, NULL, '2025-06-02 08:00:46', '2025-06-02 08:00:47', 0, 0);
INSERT INTO procore_webhook_event VALUES (6, 'procore_webhooks', 'evt_discarded', 'Submittals.create', 'Submittals', 'create', '7', '2001', '3001', '1001', '2025-06-02 08:00:47', '\x7b226964223a226576745f646973636172646564222c2274797065223a225375626d697474616c732e637265617465222c2263726561746564223a313734383835313234372c2264617461223a7b227265736f757263655f6964223a2237222c22636f6d70616e795f6964223a323030312c2270726f6a6563745f6964223a333030312c22757365725f6964223a313030317d7d', 'done', 1, 0, NULL, NULL, NULL, '2025-06-02 08:00:47', '2025-06-02 08:00:47', 0, 0);
INSERT INTO procore_webhook_event VALUES (2, 'procore_webhooks', 'evt_replayed', 'RFIs.update', 'RFIs', 'update', '7', '2001', '3001', '1001', '2025-06-02 08:00:00', '\x7b226964223a226576745f7265706c61796564222c2274797065223a22524649732e757064617465222c2263726561746564223a313734383835313230302c2264617461223a7b227265736f757263655f6964223a2237222c22636f6d70616e795f6964223a323030312c2270726f6a6563745f6964223a333030312c22757365725f6964223a313030317d7d', 'pending', 0, 0, '2025-06-02 08:00:47', NULL, 'flaky: ValueError: broken', '2025-06-02 08:00:00', NULL, 0, 0);
INSERT INTO procore_webhook_event VALUES (13, 'procore_webhooks', 'evt_ignored', 'RFIs.update', 'RFIs', 'update', '7', '2001', '3001', '99', '2025-06-02 08:00:47', '\x7b226964223a226576745f69676e6f726564222c2274797065223a22524649732e757064617465222c2263726561746564223a313734383835313234372c2264617461223a7b227265736f757263655f6964223a2237222c22636f6d70616e795f6964223a323030312c2270726f6a6563745f6964223a333030312c22757365725f6964223a223939227d7d', 'ignored', 0, 0, NULL, NULL, NULL, '2025-06-02 08:00:47', '2025-06-02 08:00:47', 0, 0);
INSERT INTO procore_webhook_event VALUES (14, 'procore_webhooks', 'sha256:6ddea06d1bc73d2b9f7ec0eb340b1875038500677d747c2874f880438527d820', '', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '\x6e6f74204a534f4e20617420616c6c', 'dead', 0, 0, NULL, NULL, 'the body is not JSON: Expecting value at character 0', '2025-06-02 08:00:47', '2025-06-02 08:00:47', 0, 0);
INSERT INTO procore_webhook_event VALUES (7, 'procore_webhooks', 'evt_done', 'RFIs.update', 'RFIs', 'update', '7', '2001', '3001', '1001', '2025-06-02 08:00:47', '\x7b226964223a226576745f646f6e65222c2274797065223a22524649732e757064617465222c2263726561746564223a313734383835313234372c2264617461223a7b227265736f757263655f6964223a2237222c22636f6d70616e795f6964223a323030312c2270726f6a6563745f6964223a333030312c22757365725f6964223a313030317d7d', 'done', 1, 0, NULL, NULL, NULL, '2025-06-02 08:00:47', '2025-06-02 08:00:47', 0, 0);
INSERT INTO procore_webhook_event VALUES (9, 'procore_webhooks', 'evt_retried', 'RFIs.update', 'RFIs', 'update', '7', '2001', '3001', '1001', '2025-06-02 08:00:47', '\x7b226964223a226576745f72657472696564222c2274797065223a22524649732e757064617465222c2263726561746564223a313734383835313234372c2264617461223a7b227265736f757263655f6964223a2237222c22636f6d70616e795f6964223a323030312c2270726f6a6563745f6964223a333030312c22757365725f6964223a313030317d7d', 'pending', 1, 0, '2025-06-02 08:00:47.953791', NULL, 'flaky: ValueError: broken', '2025-06-02 08:00:47', NULL, 0, 0);
INSERT INTO procore_webhook_event VALUES (15, 'procore_webhooks', 'evt_running', 'RFIs.update', 'RFIs', 'update', '7', '2001', '3001', '1001', '2025-06-02 08:00:47', '\x7b226964223a226576745f72756e6e696e67222c2274797065223a22524649732e757064617465222c2263726561746564223a313734383835313234372c2264617461223a7b227265736f757263655f6964223a2237222c22636f6d70616e795f6964223a323030312c2270726f6a6563745f6964223a333030312c22757365725f6964223a313030317d7d', 'running', 0, 1, '2025-06-02 08:05:47', '1a692e2d120851ee71c5228bdbbb6df0', NULL, '2025-06-02 08:00:47', NULL, 0, 0);
INSERT INTO procore_webhook_event VALUES (12, 'procore_webhooks', 'evt_hung', 'RFIs.update', 'RFIs', 'update', '7', '2001', '3001', '1001', '2025-06-02 08:00:47', '\x7b226964223a226576745f68756e67222c2274797065223a22524649732e757064617465222c2263726561746564223a313734383835313234372c2264617461223a7b227265736f757263655f6964223a2237222c22636f6d70616e795f6964223a323030312c2270726f6a6563745f6964223a333030312c22757365725f6964223a313030317d7d', 'pending', 1, 0, '2025-06-02 08:00:53.135596', NULL, 'slow: no answer within 0.6 s (timeout)', '2025-06-02 08:00:47', NULL, 0, 0);
INSERT INTO procore_webhook_event VALUES (8, 'other', 'evt_other_done', 'RFIs.update', 'RFIs', 'update', '7', '2001', '3001', '1001', '2025-06-02 08:00:47', '\x7b226964223a226576745f6f746865725f646f6e65222c2274797065223a22524649732e757064617465222c2263726561746564223a313734383835313234372c2264617461223a7b227265736f757263655f6964223a2237222c22636f6d70616e795f6964223a323030312c2270726f6a6563745f6964223a333030312c22757365725f6964223a313030317d7d', 'done', 1, 0, NULL, NULL, NULL, '2025-06-02 08:00:47', '2025-06-02 08:00:47', 0, 0);
INSERT INTO procore_webhook_event VALUES (16, 'procore_webhooks', 'evt_pending', 'RFIs.update', 'RFIs', 'update', '7', '2001', '3001', '1001', '2025-06-02 08:00:47', '\x7b226964223a226576745f70656e64696e67222c2274797065223a22524649732e757064617465222c2263726561746564223a313734383835313234372c2264617461223a7b227265736f757263655f6964223a2237222c22636f6d70616e795f6964223a323030312c2270726f6a6563745f6964223a333030312c22757365725f6964223a313030317d7d', 'pending', 0, 0, '2025-06-02 08:00:47', NULL, NULL, '2025-06-02 08:00:47', NULL, 0, 0);
INSERT INTO procore_webhook_event VALUES (10, 'procore_webhooks', 'evt_retried_crashed', 'RFIs.update', 'RFIs', 'update', '7', '2001', '3001', '1001', '2025-06-02 08:00:47', '\x7b226964223a226576745f726574726965645f63726173686564222c2274797065223a22524649732e757064617465222c2263726561746564223a313734383835313234372c2264617461223a7b227265736f757263655f6964223a2237222c22636f6d70616e795f6964223a323030312c2270726f6a6563745f6964223a333030312c22757365725f6964223a313030317d7d', 'running', 1, 1, '2025-06-02 08:06:02', '5d2c3e551d489b05494d2a3f1cb3bd6e', 'flaky: ValueError: broken', '2025-06-02 08:00:47', NULL, 0, 0);
INSERT INTO procore_webhook_journal VALUES (1, 'procore_webhooks', 'replay', 2, '2025-06-02 08:00:47', 'me@host');
INSERT INTO procore_webhook_journal VALUES (2, 'procore_webhooks', 'pause', NULL, '2025-06-02 08:01:02', 'amy@host');
INSERT INTO procore_webhook_journal VALUES (3, 'procore_webhooks', 'resume', NULL, '2025-06-02 08:01:02', 'amy@host');
INSERT INTO procore_webhook_journal VALUES (4, 'procore_webhooks', 'pause', NULL, '2025-06-02 08:01:02', 'me@host');
INSERT INTO procore_webhook_journal VALUES (5, 'other', 'pause', NULL, '2025-06-02 08:01:02', 'me@host');
INSERT INTO procore_webhook_journal VALUES (6, 'other', 'resume', NULL, '2025-06-02 08:01:02', 'amy@host');
INSERT INTO procore_webhook_receipt VALUES (1, 'good', 'done', 0, '2025-06-02 08:00:00');
INSERT INTO procore_webhook_receipt VALUES (1, 'slow', 'done', 0, '2025-06-02 08:00:00');
INSERT INTO procore_webhook_receipt VALUES (2, 'good', 'done', 0, '2025-06-02 08:00:00');
INSERT INTO procore_webhook_receipt VALUES (2, 'slow', 'done', 0, '2025-06-02 08:00:00');
INSERT INTO procore_webhook_receipt VALUES (3, 'good', 'done', 0, '2025-06-02 08:00:00');
INSERT INTO procore_webhook_receipt VALUES (3, 'flaky', 'done', 0, '2025-06-02 08:00:00');
INSERT INTO procore_webhook_receipt VALUES (3, 'slow', 'abandoned', 3, '2025-06-02 08:00:30');
INSERT INTO procore_webhook_receipt VALUES (4, 'good', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (4, 'flaky', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (4, 'latest', 'superseded', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (4, 'slow', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (5, 'good', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (5, 'flaky', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (5, 'latest', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (5, 'slow', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (6, 'good', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (6, 'flaky', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (6, 'picky', 'discarded', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (6, 'slow', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (7, 'good', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (7, 'flaky', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (7, 'slow', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (9, 'good', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (9, 'slow', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (10, 'good', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (10, 'slow', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (11, 'good', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (11, 'flaky', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (11, 'slow', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (12, 'good', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (12, 'flaky', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (12, 'slow', 'abandoned', 1, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (8, 'good', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_receipt VALUES (15, 'good', 'done', 0, '2025-06-02 08:00:47');
INSERT INTO procore_webhook_state VALUES ('', 'schema', '2', '2025-06-02 08:00:00.000000');
INSERT INTO procore_webhook_state VALUES ('', 'seen:vm:18360:1795745307', '{"mode": "worker", "endpoints": ["procore_webhooks"], "longest": null, "threads": 1, "runs": 0}', '2025-06-02 08:00:00');
SELECT pg_catalog.setval('procore_webhook_event_id_seq', 16, true);
SELECT pg_catalog.setval('procore_webhook_journal_id_seq', 6, true);
ALTER TABLE ONLY procore_webhook_event
    ADD CONSTRAINT procore_webhook_event_pkey PRIMARY KEY (id);
ALTER TABLE ONLY procore_webhook_journal
    ADD CONSTRAINT procore_webhook_journal_pkey PRIMARY KEY (id);
ALTER TABLE ONLY procore_webhook_receipt
    ADD CONSTRAINT procore_webhook_receipt_pkey PRIMARY KEY (event, subscriber);
ALTER TABLE ONLY procore_webhook_state
    ADD CONSTRAINT procore_webhook_state_pkey PRIMARY KEY (endpoint, name);
ALTER TABLE ONLY procore_webhook_event
    ADD CONSTRAINT uq_procore_webhook_event UNIQUE (endpoint, event_id);
CREATE INDEX ix_procore_webhook_event_due ON procore_webhook_event USING btree (endpoint, due_at) WHERE (due_at IS NOT NULL);
CREATE INDEX ix_procore_webhook_event_resource ON procore_webhook_event USING btree (resource_id, event_at);
CREATE INDEX ix_procore_webhook_journal_action ON procore_webhook_journal USING btree (endpoint, action, id);
CREATE INDEX ix_procore_webhook_journal_event ON procore_webhook_journal USING btree (event);
