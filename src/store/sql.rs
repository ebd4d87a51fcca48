//! What the tables of sync ask of a database, in words that SQLite and PostgreSQL both know.
//!
//! There is one text of each statement, so that no order and no bound can differ between the two.
//! The price is their common tongue: `?1` for a value (PostgreSQL reads `$1`), whole numbers of 64
//! bits, texts and bytes; a name for each inner SELECT; no `rowid`, no `OR REPLACE`, no literals of
//! bytes. `RETURNING n` says which number a row got.

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, params_from_iter};

use super::StoreError;

/// A value of a statement.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    Int(i64),
    Text(&'a str),
    Bytes(&'a [u8]),
    Null,
}

/// A value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
    Null,
}

/// A row that was read; each of its values can be taken once.
#[derive(Debug)]
pub struct Row(pub Vec<Cell>);

impl Row {
    fn take(&mut self, i: usize) -> Cell {
        self.0.get_mut(i).map_or(Cell::Null, |cell| std::mem::replace(cell, Cell::Null))
    }

    fn odd(i: usize) -> StoreError {
        StoreError::Sealed { what: format!("column {i} of a row") }
    }

    pub fn int(&mut self, i: usize) -> Result<i64, StoreError> {
        match self.take(i) {
            Cell::Int(n) => Ok(n),
            _ => Err(Row::odd(i)),
        }
    }

    pub fn text(&mut self, i: usize) -> Result<String, StoreError> {
        match self.take(i) {
            Cell::Text(text) => Ok(text),
            _ => Err(Row::odd(i)),
        }
    }

    pub fn bytes(&mut self, i: usize) -> Result<Vec<u8>, StoreError> {
        match self.take(i) {
            Cell::Bytes(bytes) => Ok(bytes),
            _ => Err(Row::odd(i)),
        }
    }

    /// Bytes of a fixed number, `None` for NULL.
    pub fn array<const N: usize>(&mut self, i: usize) -> Result<Option<[u8; N]>, StoreError> {
        match self.take(i) {
            Cell::Null => Ok(None),
            Cell::Bytes(bytes) => bytes.try_into().map(Some).map_err(|_| Row::odd(i)),
            _ => Err(Row::odd(i)),
        }
    }
}

/// A transaction of a database. See the module for what its statements may say.
pub trait Sql {
    /// Runs a statement that gives no rows; how many it changed.
    fn run(&mut self, sql: &str, values: &[Value<'_>]) -> Result<u64, StoreError>;

    /// Runs a statement; the rows that it gives.
    fn rows(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError>;
}

impl rusqlite::ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match *self {
            Value::Int(n) => ValueRef::Integer(n),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Bytes(bytes) => ValueRef::Blob(bytes),
            Value::Null => ValueRef::Null,
        }))
    }
}

impl Sql for &Connection {
    fn run(&mut self, sql: &str, values: &[Value<'_>]) -> Result<u64, StoreError> {
        Ok(self.prepare(sql)?.execute(params_from_iter(values))? as u64)
    }

    fn rows(&mut self, sql: &str, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        let mut statement = self.prepare(sql)?;
        let n_column = statement.column_count();
        let mut rows = statement.query(params_from_iter(values))?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let cells = (0..n_column).map(|i| row.get_ref(i).map(cell_of));
            found.push(Row(cells.collect::<rusqlite::Result<_>>()?));
        }
        Ok(found)
    }
}

fn cell_of(value: ValueRef<'_>) -> Cell {
    match value {
        ValueRef::Integer(n) => Cell::Int(n),
        ValueRef::Text(text) => Cell::Text(String::from_utf8_lossy(text).into_owned()),
        ValueRef::Blob(bytes) => Cell::Bytes(bytes.to_vec()),
        ValueRef::Null | ValueRef::Real(_) => Cell::Null,
    }
}
