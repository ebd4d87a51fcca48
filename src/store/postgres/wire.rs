//! One connection: opened, looked at, and a transaction on it.
//!
//! ```text
//! connect -> settings -> alone: is there a version? migrate : make -> is the key ours? -> ready
//! write   begin, hold the row of the version | statements | commit
//! look    begin, of what is committed now    | statements | commit
//! ```
//!
//! Writers take turns by that row, as those of SQLite do: each change sets the one logical clock,
//! so none could go beside another, and none has to be tried again. Within its turn a writer sees
//! all that was committed before it. A new program that migrates waits for its turn as well.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, SimpleQueryMessage, Statement};

use super::line::{Fault, Line};
use super::schema::{NEWEST, STEPS};
use crate::base::limits::{
    SHARED_ANSWER_MS, SHARED_CONNECT_MS, SHARED_SILENCE_MS, SHARED_STATEMENT_MS,
};
use crate::seal::Sealer;
use crate::store::StoreError;
use crate::store::peers::drawn_node;
use crate::store::shared::SharedPlace;
use crate::store::sql::{Cell, Row, Sql, Value};

/// What is sealed in `owner`, to know the key again.
const TOUCHSTONE: &[u8] = b"jetforge shared 1";
/// Who opens a connection holds this, so that one makes or changes the tables.
const LOCK: i64 = 0x6a65_7466_6f72_6765;

/// See the module.
pub struct Wire {
    line: Line,
    place: String,
    statements: HashMap<String, Statement>,
    /// A statement failed: the transaction ends without effect, whatever its owner thinks.
    has_failed: bool,
    /// No transaction is open.
    is_free: bool,
}

/// How a transaction begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    Write,
    Look,
}

impl Wire {
    /// A connection to tables that are ours; what their processes are called.
    ///
    /// # Errors
    /// If the server is away or refuses, or another key or a newer program made the tables.
    pub fn open(
        place: &SharedPlace,
        password: Option<&str>,
        sealer: &Sealer,
    ) -> Result<(Wire, String), StoreError> {
        let mut config = Config::new();
        config.user(&place.user).dbname(&place.database).port(place.port);
        config.application_name("jetforge");
        // A name may have an address that is dead before one that is not.
        config.connect_timeout(Duration::from_millis(SHARED_CONNECT_MS / 2));
        config.tcp_user_timeout(Duration::from_millis(SHARED_SILENCE_MS));
        config.keepalives_idle(Duration::from_millis(SHARED_SILENCE_MS));
        config.keepalives_interval(Duration::from_millis(SHARED_SILENCE_MS));
        match place.host.starts_with('/') {
            true => config.host_path(&place.host),
            false => config.host(&place.host),
        };
        if let Some(password) = password {
            config.password(password);
        }
        let place = place.to_string();
        let line = Line::open(&config, SHARED_CONNECT_MS);
        let line = line.map_err(|fault| meant(&place, &fault))?;
        let statements = HashMap::new();
        let mut wire = Wire { line, place, statements, has_failed: false, is_free: true };
        // What is told to be on the disk is.
        wire.batch(&format!(
            "SET search_path = jetforge; SET synchronous_commit = on; SET client_encoding = 'UTF8';
             SET statement_timeout = {SHARED_STATEMENT_MS};
             SET lock_timeout = {SHARED_STATEMENT_MS};
             SET idle_in_transaction_session_timeout = {SHARED_STATEMENT_MS}"
        ))?;
        let node = wire.know(sealer)?;
        Ok((wire, node))
    }

    fn batch(&mut self, sql: &str) -> Result<(), StoreError> {
        self.batch_within(SHARED_ANSWER_MS, sql)
    }

    fn batch_within(&mut self, ms: u64, sql: &str) -> Result<(), StoreError> {
        let done = self.line.ask(ms, async |client| client.batch_execute(sql).await);
        done.map_err(|fault| self.failed(&fault))
    }

    /// Makes the tables what this program knows, and itself known to them.
    fn know(&mut self, sealer: &Sealer) -> Result<String, StoreError> {
        self.batch(&format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK})"))?;
        let found = "SELECT 1 FROM pg_catalog.pg_tables \
                     WHERE schemaname = 'jetforge' AND tablename = 'meta'";
        let mut version = match self.rows(found, &[])?.is_empty() {
            true => 0,
            false => self.version()?,
        };
        let is_old = version < NEWEST;
        while version < NEWEST {
            self.batch(STEPS[version as usize])?;
            version += 1;
        }
        if is_old {
            let sql = "UPDATE meta SET value = ?1 WHERE key = 'version'";
            self.run(sql, &[Value::Int(version)])?;
        }
        let owner = self.rows("SELECT node, touchstone FROM owner", &[])?.into_iter().next();
        let node = match owner {
            Some(mut row) => {
                let (node, sealed) = (row.text(0)?, row.bytes(1)?);
                let text = sealer.unwrap("touchstone", &sealed);
                if text.as_deref() != Some(TOUCHSTONE) {
                    let _ = self.batch("ROLLBACK");
                    let why = "another device key made it; name a copy of that one in \
                               hub.store_key_file";
                    return Err(self.refuses(why));
                }
                node
            }
            None => {
                let node = drawn_node()?;
                let failed = |source| StoreError::File { path: "random".into(), source };
                let sealed = sealer.wrap("touchstone", TOUCHSTONE).map_err(failed)?;
                let sql = "INSERT INTO owner (node, touchstone) VALUES (?1, ?2)";
                self.run(sql, &[Value::Text(&node), Value::Bytes(&sealed)])?;
                node
            }
        };
        self.batch("COMMIT")?;
        Ok(node)
    }

    /// The version of the tables, whose row is held from now on.
    fn version(&mut self) -> Result<i64, StoreError> {
        let sql = "SELECT value FROM jetforge.meta WHERE key = 'version' FOR UPDATE";
        let said = self.line.ask(SHARED_ANSWER_MS, async |client| client.simple_query(sql).await);
        let said = said.map_err(|fault| self.failed(&fault))?;
        let version = said.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse::<i64>().ok(),
            _ => None,
        });
        let version = version.ok_or_else(|| self.refuses("its tables have no version"))?;
        if version > NEWEST {
            let place = self.place.clone().into();
            let (found, known) = (version, NEWEST);
            return Err(StoreError::TooNew { path: place, found, known });
        }
        Ok(version)
    }

    /// Begins a transaction.
    ///
    /// # Errors
    /// If the server is away, or a newer program changed the tables.
    pub fn begin(&mut self, how: Begin) -> Result<(), StoreError> {
        (self.has_failed, self.is_free) = (false, false);
        // There is nothing to wait for: who is silent now is not there.
        let begin = match how {
            Begin::Look => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            Begin::Write => "BEGIN ISOLATION LEVEL READ COMMITTED",
        };
        self.batch_within(SHARED_CONNECT_MS, begin)?;
        match how {
            Begin::Look => Ok(()),
            Begin::Write => self.version().map(drop),
        }
    }

    /// Ends a transaction with what `done` says; whether it came to pass.
    ///
    /// # Errors
    /// That of `done`; or if the server went away, in which case nobody knows.
    pub fn end(&mut self, done: Result<(), StoreError>) -> Result<(), StoreError> {
        if done.is_ok() && !self.has_failed {
            self.batch("COMMIT")?;
            self.is_free = true;
            return Ok(());
        }
        // Who swallowed the failure of a statement must not believe that the rest is kept.
        self.is_free = self.batch("ROLLBACK").is_ok();
        done.and_then(|()| Err(self.refuses("a statement failed; nothing was changed")))
    }

    /// Whether it can be used again.
    pub fn is_sound(&self) -> bool {
        self.is_free && !self.line.is_closed()
    }

    fn refuses(&self, why: &str) -> StoreError {
        StoreError::Shared { place: self.place.clone(), why: why.to_owned() }
    }

    fn failed(&mut self, fault: &Fault) -> StoreError {
        self.has_failed = true;
        meant(&self.place, fault)
    }

    fn statement(&mut self, sql: &str) -> Result<Statement, StoreError> {
        if let Some(known) = self.statements.get(sql) {
            return Ok(known.clone());
        }
        let own = sql.replace('?', "$");
        let made = self.line.ask(SHARED_ANSWER_MS, async |client| client.prepare(&own).await);
        let made = made.map_err(|fault| self.failed(&fault))?;
        self.statements.insert(sql.to_owned(), made.clone());
        Ok(made)
    }
}

impl Sql for Wire {
    fn run(&mut self, sql: &str, values: &[Value<'_>]) -> Result<u64, StoreError> {
        let statement = self.statement(sql)?;
        let values: Vec<_> = values.iter().map(driven).collect();
        let run = async |client: &Client| client.execute(&statement, &values).await;
        let done = self.line.ask(SHARED_ANSWER_MS, run);
        done.map_err(|fault| self.failed(&fault))
    }

    fn rows(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        let statement = self.statement(sql)?;
        let values: Vec<_> = values.iter().map(driven).collect();
        let query = async |client: &Client| client.query(&statement, &values).await;
        let rows = self.line.ask(SHARED_ANSWER_MS, query);
        let rows = rows.map_err(|fault| self.failed(&fault))?;
        let row = |row: &tokio_postgres::Row| {
            let cells = (0..row.len()).map(|i| cell_of(row, i));
            cells.collect::<Result<Vec<Cell>, _>>().map(Row)
        };
        let found = rows.iter().map(row).collect::<Result<Vec<_>, _>>();
        found.map_err(|error| self.failed(&Fault::Said(error)))
    }
}

fn cell_of(row: &tokio_postgres::Row, i: usize) -> Result<Cell, tokio_postgres::Error> {
    let cell = match *row.columns()[i].type_() {
        Type::INT8 => row.try_get::<_, Option<i64>>(i)?.map(Cell::Int),
        Type::INT4 => row.try_get::<_, Option<i32>>(i)?.map(|n| Cell::Int(n.into())),
        Type::BYTEA => row.try_get::<_, Option<Vec<u8>>>(i)?.map(Cell::Bytes),
        _ => row.try_get::<_, Option<String>>(i)?.map(Cell::Text),
    };
    Ok(cell.unwrap_or(Cell::Null))
}

/// A value as the driver takes it. No column but those of bytes may be without one.
fn driven<'a>(value: &'a Value<'a>) -> &'a (dyn ToSql + Sync) {
    const NULL: Option<&[u8]> = None;
    match value {
        Value::Int(n) => n,
        Value::Text(text) => text,
        Value::Bytes(bytes) => bytes,
        Value::Null => &NULL,
    }
}

/// What it means to who waits that there is no answer.
fn meant(place: &str, fault: &Fault) -> StoreError {
    let away = |why: String| StoreError::Away { place: place.to_owned(), why };
    match fault {
        Fault::Said(error) => said(place, error),
        Fault::Silent(ms) => away(format!("it has said nothing for {} s", ms / 1000)),
        Fault::System(error) => away(error.to_string()),
    }
}

/// What an error means. Only the server's sentence is told: its details may name what is in a row.
fn said(place: &str, error: &tokio_postgres::Error) -> StoreError {
    let place = place.to_owned();
    let Some(told) = error.as_db_error() else {
        let mut why = error.to_string();
        let source = error.source().map(|source| source.to_string());
        if let Some(source) = source.filter(|source| !why.contains(source)) {
            why = format!("{why}: {source}");
        }
        let is_lost = error.source().is_none_or(|source| source.is::<std::io::Error>());
        return match error.is_closed() || is_lost {
            true => StoreError::Away { place, why },
            false => StoreError::Shared { place, why },
        };
    };
    let why = told.message().to_owned();
    let code = told.code();
    let passes = [
        SqlState::T_R_SERIALIZATION_FAILURE,
        SqlState::T_R_DEADLOCK_DETECTED,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::QUERY_CANCELED,
    ];
    // Classes: connection, resources, the operator's hand, the system.
    let is_away = ["08", "53", "57", "58"].iter().any(|class| code.code().starts_with(class));
    match passes.contains(code) {
        true => StoreError::Busy,
        false if is_away => StoreError::Away { place, why },
        false => StoreError::Shared { place, why },
    }
}
