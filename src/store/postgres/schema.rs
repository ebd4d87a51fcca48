//! The shared tables, as the steps that made them: step n takes a database from version n - 1 to n.
//!
//! They are the tables of sync of [`super::super::schema`], in a schema of their own. A step never
//! changes once it is released; a new one follows. Texts are in the order of their bytes, as they
//! are in SQLite.
//!
//! ```text
//! meta    version: whose row a writer holds, so that one writes at a time      sync_clock
//! owner   one row: what the processes are called, and a text that their key alone opens
//! talks   the last words with each peer: whoever of the processes said them
//! ```

/// See the module.
pub const STEPS: [&str; 2] = [
    "
CREATE SCHEMA IF NOT EXISTS jetforge;

CREATE TABLE meta (key TEXT PRIMARY KEY, value BIGINT NOT NULL);
CREATE TABLE owner (
    is_one          BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (is_one),
    node            TEXT NOT NULL,
    touchstone      BYTEA NOT NULL
);

CREATE TABLE peers (
    node            TEXT COLLATE \"C\" PRIMARY KEY,
    name            TEXT COLLATE \"C\" NOT NULL,
    address         TEXT NOT NULL,
    sealed_key      BYTEA NOT NULL,
    key_digest      BYTEA NOT NULL,
    certificate     BYTEA,
    paired_ms       BIGINT NOT NULL
);

CREATE TABLE links (
    peer            TEXT COLLATE \"C\" PRIMARY KEY REFERENCES peers (node) ON DELETE CASCADE,
    state           TEXT NOT NULL
);

CREATE TABLE talks (
    peer            TEXT COLLATE \"C\" PRIMARY KEY REFERENCES peers (node) ON DELETE CASCADE,
    state           TEXT NOT NULL
);

CREATE TABLE outbox (
    n               BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    peer            TEXT COLLATE \"C\" NOT NULL REFERENCES peers (node) ON DELETE CASCADE,
    seq             BIGINT NOT NULL,
    id              BIGINT NOT NULL,
    n_bytes         BIGINT NOT NULL,
    written_ms      BIGINT NOT NULL,
    sealed_entry    BYTEA NOT NULL,
    UNIQUE (peer, seq)
);

CREATE TABLE inbox (
    n               BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    peer            TEXT COLLATE \"C\" NOT NULL REFERENCES peers (node) ON DELETE CASCADE,
    id              BIGINT NOT NULL,
    UNIQUE (peer, id)
);
CREATE INDEX inbox_by_peer ON inbox (peer, n);

CREATE TABLE records (
    n               BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind            TEXT COLLATE \"C\" NOT NULL,
    key             TEXT COLLATE \"C\" NOT NULL,
    origin          TEXT NOT NULL,
    sealed_entry    BYTEA NOT NULL,
    UNIQUE (kind, key)
);
CREATE INDEX records_by_kind ON records (kind, n);

CREATE TABLE copies (
    n               BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind            TEXT COLLATE \"C\" NOT NULL,
    key             TEXT COLLATE \"C\" NOT NULL,
    origin          TEXT NOT NULL,
    sealed_entry    BYTEA NOT NULL
);
CREATE INDEX copies_by_key ON copies (kind, key, n);

CREATE TABLE held (
    n               BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    peer            TEXT COLLATE \"C\" NOT NULL REFERENCES peers (node) ON DELETE CASCADE,
    why             TEXT NOT NULL,
    held_ms         BIGINT NOT NULL,
    sealed_entry    BYTEA NOT NULL
);
CREATE INDEX held_by_peer ON held (peer, n);

CREATE TABLE acts (
    n               BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    peer            TEXT COLLATE \"C\" NOT NULL,
    kind            TEXT COLLATE \"C\" NOT NULL,
    key             TEXT COLLATE \"C\" NOT NULL,
    UNIQUE (kind, key)
);

CREATE TABLE forwarded (
    n               BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source          TEXT COLLATE \"C\" NOT NULL,
    id              BIGINT NOT NULL,
    UNIQUE (source, id)
);

INSERT INTO meta VALUES ('version', 0);
",
    "
ALTER TABLE peers ADD COLUMN paired_here BIGINT NOT NULL DEFAULT 0;
UPDATE peers SET paired_here = 1 WHERE address = '';
",
];

/// The newest version.
pub const NEWEST: i64 = STEPS.len() as i64;
