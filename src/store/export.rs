//! What is kept, as text that people and other programs can read, and the way back in.
//!
//! ```text
//! JSON lines   {"table": "jobs", "row": {…}}: texts opened, times as they are
//! SQL          INSERT statements; texts stay sealed and open with this device's key alone
//! ```
//!
//! An import adds what is not there and changes nothing that is: the same file can be read twice.

use std::io::{BufRead, Read, Write};

use rusqlite::params_from_iter;
use rusqlite::types::ValueRef;
use serde_json::{Map, Value, json};

use super::{Store, StoreError};
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
}

/// A table with the order in which it is written.
const TABLES: [(&str, &str); 2] = [
    ("jobs", "SELECT * FROM jobs ORDER BY n"),
    (
        "pieces",
        "SELECT jobs.id AS job_id, pieces.epoch, pieces.end, pieces.sealed_pieces \
         FROM pieces JOIN jobs ON jobs.n = pieces.job ORDER BY job, pieces.epoch, pieces.end",
    ),
];

impl Store {
    /// Writes everything that is kept.
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
        let id = text("id").or(text("job_id")).unwrap_or_default();
        let mut row = Map::new();
        for (name, value) in values {
            let value = match value {
                ValueRef::Null => Value::Null,
                ValueRef::Integer(n) => json!(n),
                ValueRef::Real(x) => json!(x),
                ValueRef::Text(text) => json!(String::from_utf8_lossy(text)),
                ValueRef::Blob(bytes) => match name.strip_prefix("sealed_") {
                    Some(what) => {
                        let end = number("epoch").zip(number("end"));
                        let opened = self.unseal(&sealed_name(what, id, end), bytes)?;
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
        let mut rows = Vec::new();
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
            rows.push(self.row(&value).map_err(wrong)?);
        }
        self.write(move |connection| {
            let mut imported = Imported::default();
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

    /// A line as a statement with its values.
    fn row(&self, line: &Value) -> Result<(String, Vec<rusqlite::types::Value>), String> {
        let table = line["table"].as_str().unwrap_or_default();
        let columns = columns(table).ok_or_else(|| format!("there is no table {table:?}"))?;
        let row = line["row"].as_object().ok_or("it has no row")?;
        let id = row.get("id").or(row.get("job_id")).and_then(Value::as_str).unwrap_or_default();
        let number = |name: &str| row.get(name).and_then(Value::as_i64);
        let end = number("epoch").zip(number("end"));
        if let Some(name) = row.keys().find(|name| !columns.contains(&name.as_str())) {
            return Err(format!("{table} has no column {name:?}"));
        }
        let mut values = Vec::new();
        for &name in columns {
            let value = row.get(name).unwrap_or(&Value::Null);
            values.push(match (name, value) {
                ("state", Value::String(state)) if state == "running" => "queued".to_owned().into(),
                (_, Value::Null) => rusqlite::types::Value::Null,
                ("body" | "answer" | "pieces", Value::String(text)) => {
                    let name = sealed_name(name, id, end);
                    let sealed = self.seal(&name, text.as_bytes()).map_err(|e| e.to_string())?;
                    sealed.into()
                }
                ("body_hash", Value::String(text)) => unhex(text).ok_or("no hash")?.into(),
                (_, Value::String(text)) => text.clone().into(),
                (_, Value::Number(n)) => n.as_i64().ok_or("no whole number")?.into(),
                _ => return Err(format!("{name} has a value of no type that is kept")),
            });
        }
        Ok((insertion(table, columns), values))
    }
}

/// The name under which a column is sealed.
fn sealed_name(what: &str, id: &str, end: Option<(i64, i64)>) -> String {
    match (what, end) {
        ("pieces", Some((epoch, end))) => format!("pieces of {id} up to {epoch}-{end}"),
        _ => format!("{what} of {id}"),
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
            "status",
            "answer_type",
            "answer",
            "callback",
            "callback_state",
            "n_callback",
            "callback_due_ms",
        ]),
        "pieces" => Some(&["job_id", "epoch", "end", "pieces"]),
        _ => None,
    }
}

fn insertion(table: &str, columns: &[&str]) -> String {
    if table == "pieces" {
        return "INSERT OR IGNORE INTO pieces SELECT n, ?2, ?3, ?4 FROM jobs WHERE id = ?1".into();
    }
    let sealed = |name: &&str| match *name {
        "body" | "answer" => format!("sealed_{name}"),
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || text.len() % 2 != 0 {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}
