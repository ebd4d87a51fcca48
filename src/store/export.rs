//! What is kept, as text that people and other programs can read, and the way back in.
//!
//! ```text
//! JSON lines   {"table": "jobs", "row": {…}}: texts opened, times as they are
//! SQL          INSERT statements; texts stay sealed and open with this device's key alone
//!
//! jobs, pieces, records        out and in
//! copies, held                 out: what did not count, and what was set aside, for people
//! ```
//!
//! An import adds what is not there and changes nothing that is: the same file can be read twice.
//!
//! Pairings stay here, for their keys are two machines' secret, and so does what only the exchange
//! with a peer is about: its marks, and what waits for it, which goes by a file of its own.
//! So do files, and what is on the server of a shared store.

use std::io::{BufRead, Read, Write};

use rusqlite::params_from_iter;
use rusqlite::types::ValueRef;
use serde_json::{Map, Value, json};

use super::sync::{held_name, record_name};
use super::{Store, StoreError};
use crate::base::hash::{hex, unhex};
use crate::base::limits::STORE_LINE_BYTES_MAX;

/// How an export is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// One JSON object a line.
    JsonLines,
    /// SQL statements.
    Sql,
}

/// What an import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Rows that were added.
    pub n_added: usize,
    /// Rows that were there already.
    pub n_known: usize,
    /// Rows that are for people alone.
    pub n_left: usize,
}

/// A table with the order in which it is written.
const TABLES: [(&str, &str); 5] = [
    ("jobs", "SELECT * FROM jobs ORDER BY n"),
    (
        "pieces",
        "SELECT jobs.id AS job_id, pieces.epoch, pieces.end, pieces.sealed_pieces \
         FROM pieces JOIN jobs ON jobs.n = pieces.job ORDER BY job, pieces.epoch, pieces.end",
    ),
    ("records", "SELECT kind, key, origin, sealed_entry FROM records ORDER BY n"),
    ("copies", "SELECT kind, key, origin, sealed_entry FROM copies ORDER BY n"),
    ("held", "SELECT peer, why, held_ms, sealed_entry FROM held ORDER BY n"),
];

impl Store {
    /// Writes what is kept; see the module.
    ///
    /// # Errors
    /// If it cannot be read, something sealed does not open, or the writer fails.
    pub fn export(&self, format: ExportFormat, out: &mut dyn Write) -> Result<usize, StoreError> {
        let mut n_row = 0;
        let failed = |source| StoreError::File { path: "the export".into(), source };
        self.read(|connection| {
            for (table, sql) in TABLES {
                let mut rows = connection.prepare(sql)?;
                let names: Vec<String> = rows.column_names().map(str::to_owned).collect();
                let mut rows = rows.query([])?;
                while let Some(row) = rows.next()? {
                    let values = names
                        .iter()
                        .enumerate()
                        .map(|(i, name)| row.get_ref(i).map(|value| (name.as_str(), value)));
                    let values = values.collect::<rusqlite::Result<Vec<_>>>()?;
                    let line = match format {
                        ExportFormat::JsonLines => self.line(table, &values)?,
                        ExportFormat::Sql => statement(table, &values),
                    };
                    out.write_all(line.as_bytes())
                        .and_then(|()| out.write_all(b"\n"))
                        .map_err(failed)?;
                    n_row += 1;
                }
            }
            Ok(())
        })?;
        Ok(n_row)
    }

    fn line(&self, table: &str, values: &[(&str, ValueRef<'_>)]) -> Result<String, StoreError> {
        let text = |name: &str| {
            values.iter().find(|value| value.0 == name).and_then(|v| v.1.as_str().ok())
        };
        let number = |name: &str| {
            values.iter().find(|value| value.0 == name).and_then(|v| v.1.as_i64().ok())
        };
        let mut row = Map::new();
        for (name, value) in values {
            let value = match value {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(n) => json!(n),
                ValueRef::Real(x) => json!(x),
                ValueRef::Text(text) => json!(String::from_utf8_lossy(text)),
                ValueRef::Blob(bytes) => match name.strip_prefix("sealed_") {
                    Some(what) => {
                        let opened = self.unseal(&sealed_name(what, text, number), bytes)?;
                        json!(String::from_utf8_lossy(&opened))
                    }
                    None => json!(hex(bytes)),
                },
            };
            let name = name.strip_prefix("sealed_").unwrap_or(name);
            // What only this file's own books are about stays here.
            if columns(table).is_some_and(|columns| columns.contains(&name)) {
                row.insert(name.to_owned(), value);
            }
        }
        Ok(json!({ "table": table, "row": row }).to_string())
    }

    /// Reads JSON lines in one transaction. Jobs that ran when they were exported wait again.
    ///
    /// # Errors
    /// At the first line that cannot be read; then nothing was added.
    pub fn import(&self, lines: impl BufRead) -> Result<Imported, StoreError> {
        let (mut rows, mut n_left) = (Vec::new(), 0);
        let mut lines = lines;
        for line in 1.. {
            let wrong = |why: String| StoreError::Line { line, why };
            let mut text = String::new();
            let mut bounded = lines.by_ref().take(STORE_LINE_BYTES_MAX as u64);
            let n = bounded.read_line(&mut text).map_err(|error| wrong(error.to_string()))?;
            if n == 0 {
                break;
            }
            if text.trim().is_empty() {
                continue;
            }
            let value: Value = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
            let row = self.row(&value).map_err(wrong)?;
            n_left += usize::from(row.is_none());
            rows.extend(row);
        }
        self.write(move |connection| {
            let mut imported = Imported { n_left, ..Imported::default() };
            for (sql, values) in &rows {
                match connection.prepare(sql)?.execute(params_from_iter(values))? {
                    0 => imported.n_known += 1,
                    _ => imported.n_added += 1,
                }
            }
            let sums = "UPDATE jobs SET piece_bytes = \
                        (SELECT coalesce(sum(length(sealed_pieces)), 0) FROM pieces WHERE job = n)";
            connection.execute(sums, [])?;
            Ok(imported)
        })
    }

    /// A line as a statement with its values; nothing for one that is for people alone.
    fn row(&self, line: &Value) -> Result<Option<Insertion>, String> {
        let table = line["table"].as_str().unwrap_or_default();
        let columns = columns(table).ok_or_else(|| format!("there is no table {table:?}"))?;
        let row = line["row"].as_object().ok_or("it has no row")?;
        if ["copies", "held"].contains(&table) {
            return Ok(None);
        }
        let text = |name: &str| row.get(name).and_then(Value::as_str);
        let number = |name: &str| row.get(name).and_then(Value::as_i64);
        if let Some(name) = row.keys().find(|name| !columns.contains(&name.as_str())) {
            return Err(format!("{table} has no column {name:?}"));
        }
        let mut values = Vec::new();
        for &name in columns {
            let value = row.get(name).unwrap_or(&Value::Null);
            values.push(match (name, value) {
                ("state", Value::String(state)) if state == "running" => "queued".to_owned().into(),
                (_, Value::Null) => rusqlite::types::Value::Null,
                ("body" | "answer" | "pieces" | "entry", Value::String(opened)) => {
                    let name = sealed_name(name, text, number);
                    let sealed = self.seal(&name, opened.as_bytes()).map_err(|e| e.to_string())?;
                    sealed.into()
                }
                ("body_hash", Value::String(text)) => {
                    unhex::<Vec<u8>>(text).ok_or("no hash")?.into()
                }
                (_, Value::String(text)) => text.clone().into(),
                (_, Value::Number(n)) => n.as_i64().ok_or("no whole number")?.into(),
                _ => return Err(format!("{name} has a value of no type that is kept")),
            });
        }
        Ok(Some((insertion(table, columns), values)))
    }
}

/// A statement with its values.
type Insertion = (String, Vec<rusqlite::types::Value>);

/// The name under which a column is sealed, by the others of its row.
fn sealed_name<'a>(
    what: &str,
    text: impl Fn(&str) -> Option<&'a str>,
    number: impl Fn(&str) -> Option<i64>,
) -> String {
    let of = |name: &str| text(name).unwrap_or_default();
    match (what, number("epoch").zip(number("end"))) {
        ("entry", _) => match text("peer") {
            Some(peer) => held_name(peer),
            None => record_name(of("kind"), of("key")),
        },
        ("pieces", Some((epoch, end))) => {
            format!("pieces of {} up to {epoch}-{end}", of("job_id"))
        }
        _ => format!("{what} of {}", of("id")),
    }
}

/// Columns of a table as the lines name them.
fn columns(table: &str) -> Option<&'static [&'static str]> {
    match table {
        "jobs" => Some(&[
            "id",
            "tenant",
            "request_id",
            "body_hash",
            "endpoint",
            "n_bytes",
            "body",
            "seed",
            "priority",
            "created_ms",
            "deadline_ms",
            "n_attempt_max",
            "state",
            "due_ms",
            "n_attempt",
            "n_broken",
            "epoch",
            "n_token_start",
            "way",
            "started_ms",
            "finished_ms",
            "reason",
            "holder",
            "status",
            "answer_type",
            "answer",
            "callback",
            "callback_state",
            "n_callback",
            "callback_due_ms",
        ]),
        "pieces" => Some(&["job_id", "epoch", "end", "pieces"]),
        "records" | "copies" => Some(&["kind", "key", "origin", "entry"]),
        "held" => Some(&["peer", "why", "held_ms", "entry"]),
        _ => None,
    }
}

fn insertion(table: &str, columns: &[&str]) -> String {
    if table == "pieces" {
        return "INSERT OR IGNORE INTO pieces SELECT n, ?2, ?3, ?4 FROM jobs WHERE id = ?1".into();
    }
    let sealed = |name: &&str| match *name {
        "body" | "answer" | "entry" => format!("sealed_{name}"),
        name => name.to_owned(),
    };
    let names: Vec<String> = columns.iter().map(sealed).collect();
    let marks: Vec<String> = (1..=columns.len()).map(|i| format!("?{i}")).collect();
    let (names, marks) = (names.join(", "), marks.join(", "));
    format!("INSERT INTO {table} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING")
}

/// A row as SQL; the texts stay sealed.
fn statement(table: &str, values: &[(&str, ValueRef<'_>)]) -> String {
    let literal = |value: &ValueRef<'_>| match value {
        ValueRef::Null => "NULL".to_owned(),
        ValueRef::Integer(n) => n.to_string(),
        ValueRef::Real(x) => x.to_string(),
        ValueRef::Text(text) => {
            format!("'{}'", String::from_utf8_lossy(text).replace('\'', "''"))
        }
        ValueRef::Blob(bytes) => format!("X'{}'", hex(bytes)),
    };
    if table == "pieces" {
        let of = |i: usize| literal(&values[i].1);
        return format!(
            "INSERT INTO pieces SELECT n, {}, {}, {} FROM jobs WHERE id = {};",
            of(1),
            of(2),
            of(3),
            of(0)
        );
    }
    let names: Vec<&str> = values.iter().map(|value| value.0).collect();
    let literals: Vec<String> = values.iter().map(|value| literal(&value.1)).collect();
    format!("INSERT INTO {table} ({}) VALUES ({});", names.join(", "), literals.join(", "))
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::store::{Peer, RecordRow, schema};

    fn record(key: &str, text: &str) -> RecordRow {
        let (kind, key, origin) = ("feedback".to_owned(), key.to_owned(), "nano".to_owned());
        RecordRow { kind, key, origin, text: text.as_bytes().to_vec() }
    }

    #[test]
    fn what_is_known_goes_out_whole_and_comes_back_where_that_is_safe() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(dir.path()).unwrap().store;
        store.insert_peer(Peer { node: "nano".into(), ..Peer::default() }).unwrap();
        let known = [record("a", "it is good"), record("b", "it is not")];
        let put = known.clone();
        let put = move |tx: &mut crate::store::SyncTx<'_>| {
            put.iter().try_for_each(|row| tx.put_record(row))?;
            tx.put_copy(&record("b", "it was"))?;
            tx.hold("nano", b"no entry", "it makes no sense")
        };
        store.sync(put).unwrap();
        let mut lines = Vec::new();
        assert_eq!(store.export(ExportFormat::JsonLines, &mut lines).unwrap(), 4);
        let text = String::from_utf8(lines.clone()).unwrap();
        for said in ["it is good", "it is not", "it was", "no entry", "it makes no sense"] {
            assert!(text.contains(said), "{said}: {text}");
        }
        let theirs = Store::open(other.path()).unwrap().store;
        let imported = |n_added, n_known| Imported { n_added, n_known, n_left: 2 };
        theirs.sync(|tx| tx.put_record(&record("b", "own"))).unwrap();
        assert_eq!(theirs.import(&lines[..]).unwrap(), imported(1, 1));
        assert_eq!(theirs.import(&lines[..]).unwrap(), imported(0, 2), "twice is once");
        let found = theirs.sync_look(|tx| tx.records("feedback", 9)).unwrap();
        assert_eq!(found, [known[0].clone(), record("b", "own")], "what was there has not changed");
        let mut sql = Vec::new();
        store.export(ExportFormat::Sql, &mut sql).unwrap();
        let sql = String::from_utf8(sql).unwrap();
        assert!(!sql.contains("it is good"), "sealed");
        let mut plain = Connection::open_in_memory().unwrap();
        schema::migrate(&mut plain).unwrap();
        plain.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        plain.execute_batch(&sql).unwrap();
        for (table, expected) in [("records", 2), ("copies", 1), ("held", 1)] {
            let count = format!("SELECT count(*) FROM {table}");
            let n: i64 = plain.query_row(&count, [], |row| row.get(0)).unwrap();
            assert_eq!(n, expected, "{table}");
        }
    }
}
