//! Tables of sync that several processes share: where they are, who may use them, under which key.
//!
//! ```text
//! postgres://USER@HOST[:PORT]/NAME                a server that is reached by TCP
//! postgres://USER@/NAME?host=/run/postgresql      one on this machine, by its socket
//! ```
//!
//! The processes are one machine to others: one name, one list of peers, one key that all of it is
//! sealed with. Jobs stay where they run: see [`super::told`].
//!
//! A password is never part of the address, which is shown and logged. The address says nothing of
//! TLS either: none is spoken, so another machine has to be allowed by name.

use std::fmt;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::sql::Sql;
use super::sync::SyncTx;
use super::{Opened, Store, StoreError, schema};
use crate::base::limits::SHARED_PASSWORD_BYTES_MAX;
use crate::seal::{SealError, Sealer, device_key};

/// Where a database is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPlace {
    /// Who asks.
    pub user: String,
    /// A name, an address, or the folder of a socket.
    pub host: String,
    /// Its port; also part of a socket's name.
    pub port: u16,
    /// What it is called there.
    pub database: String,
}

impl FromStr for SharedPlace {
    type Err = String;

    fn from_str(url: &str) -> Result<SharedPlace, String> {
        let form = "use postgres://USER@HOST/NAME or postgres://USER@/NAME?host=/FOLDER";
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let (who, rest) = rest.and_then(|rest| rest.split_once('@')).ok_or(form)?;
        if who.contains(':') || rest.contains('@') || rest.contains("password") {
            let why = "a password has no place in an address, which is shown and logged; put it \
                       into a file and name that in hub.store_password_file";
            return Err(why.to_owned());
        }
        let (host, name) = rest.split_once('/').ok_or(form)?;
        let (name, query) = name.split_once('?').unwrap_or((name, ""));
        let (host, port) = match host.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
            Some((host, port)) => (host, port.parse().map_err(|_| "its port is no number")?),
            None => (host, 5432),
        };
        let host = match query.strip_prefix("host=") {
            Some(folder) if host.is_empty() && folder.starts_with('/') => folder,
            None if query.is_empty() && !host.is_empty() => host.trim_matches(['[', ']']),
            _ => return Err(form.to_owned()),
        };
        let is_word = |text: &str| {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            !text.is_empty() && text.chars().all(is_plain)
        };
        let is_host = host.starts_with('/') || host.parse::<IpAddr>().is_ok() || is_word(host);
        if !is_word(who) || !is_word(name) || !is_host || host.contains(['&', '%', '?']) {
            return Err(format!("names are of letters, digits, _, - and .; {form}"));
        }
        let [user, host, database] = [who, host, name].map(str::to_owned);
        Ok(SharedPlace { user, host, port, database })
    }
}

impl fmt::Display for SharedPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.database, self.host)
    }
}

impl SharedPlace {
    /// Whether nothing leaves this machine on the way there.
    fn is_near(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        self.host.starts_with('/')
            || self.host == "localhost"
            || address.is_ok_and(|address| address.is_loopback())
    }
}

/// What the owner says about a shared store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedOptions {
    /// Where it is.
    pub place: SharedPlace,
    /// A file with the password, if one is asked for.
    pub password_file: Option<PathBuf>,
    /// A copy of the device key that the store was made with; this machine's own by default.
    pub key_file: Option<PathBuf>,
}

impl SharedOptions {
    /// The options of an address. `is_open` allows another machine, though nothing is encrypted on
    /// the way to it.
    ///
    /// # Errors
    /// What is wrong with it, or that this program was built without the feature.
    pub fn new(url: &str, is_open: bool) -> Result<SharedOptions, String> {
        let place: SharedPlace = url.parse()?;
        if !cfg!(feature = "postgres") {
            let why = "this program was built without PostgreSQL; build it by `cargo build \
                       --release --features postgres`";
            return Err(why.to_owned());
        }
        if !is_open && !place.is_near() {
            return Err(format!(
                "{} is another machine, and nothing is encrypted on the way there; use a tunnel, \
                 or set hub.store_plain = true",
                place.host
            ));
        }
        Ok(SharedOptions { place, password_file: None, key_file: None })
    }

    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(super) fn password(&self) -> Result<Option<String>, StoreError> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let failed = |source| StoreError::File { path: path.clone(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
            let source = std::io::Error::other("others may read this password; use chmod 600");
            return Err(failed(source));
        }
        let mut text = String::new();
        file.take(SHARED_PASSWORD_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
        Ok(Some(text.lines().next().unwrap_or_default().to_owned()))
    }

    fn sealer(&self, dir: &Path) -> Result<Sealer, StoreError> {
        let path = match &self.key_file {
            // One that is named has to be there: a new key would open nothing.
            Some(path) if !path.exists() => {
                let source = std::io::ErrorKind::NotFound.into();
                return Err(SealError::File { path: path.clone(), source }.into());
            }
            Some(path) => path.clone(),
            None => dir.join("device.key"),
        };
        Ok(Sealer::new(&device_key(&path)?, "jetforge shared 1"))
    }

    fn refuses(&self, why: &str) -> StoreError {
        StoreError::Shared { place: self.place.to_string(), why: why.to_owned() }
    }
}

/// What is done in a transaction.
pub(super) type Work<'a> = Box<dyn FnOnce(&mut dyn Sql) -> Result<(), StoreError> + Send + 'a>;

/// A database that several processes use.
pub(super) trait Database: Send + Sync {
    /// Runs `work` in a transaction beside which nobody writes. `work` is run at most once.
    fn write(&self, work: Work<'_>) -> Result<(), StoreError>;

    /// Runs `work` over what was committed when it began; it cannot write.
    fn look(&self, work: Work<'_>) -> Result<(), StoreError>;

    /// What the processes of it are called, if that is known.
    fn node(&self) -> Option<String>;
}

/// Shared tables with the key that opens them.
pub(super) struct Shared {
    options: SharedOptions,
    sealer: Sealer,
    database: Box<dyn Database>,
}

impl Shared {
    /// The tables of these options, which are made if there are none.
    ///
    /// # Errors
    /// If the server is away, refuses, or the store was made with another key.
    pub fn open(dir: &Path, options: &SharedOptions) -> Result<Shared, StoreError> {
        let shared = Shared::lazy(dir, options, None)?;
        shared.look(|_| Ok(()))?;
        Ok(shared)
    }

    /// The same without a look at the server, whose processes were called `node` before.
    fn lazy(
        dir: &Path,
        options: &SharedOptions,
        node: Option<String>,
    ) -> Result<Shared, StoreError> {
        let sealer = options.sealer(dir)?;
        let database = database(options, &sealer, node)?;
        Ok(Shared { options: options.clone(), sealer, database })
    }

    pub fn sync<T: Send>(
        &self,
        work: impl FnOnce(&mut SyncTx<'_>) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        let mut done = None;
        self.database.write(Box::new(|sql| {
            done = Some(work(&mut SyncTx::new(sql, &self.sealer))?);
            Ok(())
        }))?;
        done.ok_or(StoreError::Closed)
    }

    pub fn look<T: Send>(
        &self,
        work: impl FnOnce(&mut SyncTx<'_>) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        let mut done = None;
        self.database.look(Box::new(|sql| {
            done = Some(work(&mut SyncTx::new(sql, &self.sealer))?);
            Ok(())
        }))?;
        done.ok_or(StoreError::Closed)
    }

    pub fn node(&self) -> Result<String, StoreError> {
        self.database.node().ok_or_else(|| self.refuses("nobody knows its name yet"))
    }

    pub fn refuses(&self, why: &str) -> StoreError {
        self.options.refuses(why)
    }
}

#[cfg(feature = "postgres")]
fn database(
    options: &SharedOptions,
    sealer: &Sealer,
    node: Option<String>,
) -> Result<Box<dyn Database>, StoreError> {
    Ok(Box::new(super::postgres::Postgres::new(options, sealer, node)?))
}

#[cfg(not(feature = "postgres"))]
fn database(
    options: &SharedOptions,
    _sealer: &Sealer,
    _node: Option<String>,
) -> Result<Box<dyn Database>, StoreError> {
    Err(options.refuses("this program was built without PostgreSQL"))
}

/// Where the name of a shared store is remembered, for a start while it is away.
const KNOWN: &str = "shared_node";

impl Store {
    /// Opens the store of a state directory whose tables of sync are shared with other processes.
    /// One that is away or busy is no reason to fail if this directory has used it before: it is
    /// tried again with each use.
    ///
    /// # Errors
    /// As [`Store::open`]; and if the server refuses, or another key made the shared store.
    pub fn open_shared(dir: &Path, options: &SharedOptions) -> Result<Opened, StoreError> {
        let Opened { store, mut notes } = Store::open(dir)?;
        let place = options.place.to_string();
        let kept: Option<String> = store.read(|c| Ok(schema::meta(c, KNOWN)?))?;
        let known = kept.as_deref().and_then(|kept| kept.split_once(' '));
        let known = known.filter(|(_, of)| *of == place).map(|(node, _)| node.to_owned());
        let shared = match Shared::open(dir, options) {
            Ok(shared) => {
                let node = shared.node()?;
                if known.as_ref().is_some_and(|known| *known != node) {
                    notes.push(format!("the shared store {place} is another one than before"));
                }
                let kept = format!("{node} {place}");
                store.write(move |c| Ok(schema::set_meta(c, KNOWN, kept)?))?;
                shared
            }
            Err(error @ (StoreError::Away { .. } | StoreError::Busy)) if known.is_some() => {
                notes.push(format!("{error}; sync waits for it"));
                Shared::lazy(dir, options, known)?
            }
            Err(error) => return Err(error),
        };
        let _ = store.0.shared.set(shared);
        Ok(Opened { store, notes })
    }

    /// Whether other processes use the tables of sync as well.
    pub fn is_shared(&self) -> bool {
        self.0.shared.get().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> Result<(String, String, u16, String), String> {
        let place: SharedPlace = url.parse()?;
        Ok((place.user, place.host, place.port, place.database))
    }

    #[test]
    fn an_address_is_read_or_says_what_is_wrong() {
        let of = |user: &str, host: &str, port, name: &str| {
            Ok((user.to_owned(), host.to_owned(), port, name.to_owned()))
        };
        assert_eq!(place("postgres://hub@pg.lan/sync"), of("hub", "pg.lan", 5432, "sync"));
        assert_eq!(place("postgresql://a@[::1]:99/b"), of("a", "::1", 99, "b"));
        assert_eq!(place("postgres://a@[::1]/b"), of("a", "::1", 5432, "b"));
        let socket = place("postgres://a@/b?host=/run/postgresql");
        assert_eq!(socket, of("a", "/run/postgresql", 5432, "b"));
        for wrong in [
            "",
            "sqlite:///x",
            "postgres://host/name",
            "postgres://a@host",
            "postgres://a@host/",
            "postgres://a@host:x/b",
            "postgres://a@/b",
            "postgres://a@/b?host=run",
            "postgres://a@host/b?sslmode=require",
            "postgres://a@host/b?host=/run",
            "postgres://a@ho st/b",
        ] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
        for wrong in ["postgres://a:secret@host/b", "postgres://a@host/b?password=secret"] {
            let why = place(wrong).unwrap_err();
            assert!(why.contains("store_password_file") && !why.contains("secret"), "{why}");
        }
    }

    #[test]
    #[cfg(feature = "postgres")]
    fn another_machine_has_to_be_allowed_by_name() {
        for near in ["a@localhost/b", "a@127.0.0.1/b", "a@[::1]/b", "a@/b?host=/run"] {
            assert!(SharedOptions::new(&format!("postgres://{near}"), false).is_ok(), "{near}");
        }
        for far in ["postgres://a@10.0.0.7/b", "postgres://a@pg.lan/b"] {
            let why = SharedOptions::new(far, false).unwrap_err();
            assert!(why.contains("store_plain"), "{why}");
            assert!(SharedOptions::new(far, true).is_ok());
        }
    }

    #[test]
    #[cfg(feature = "postgres")]
    fn a_password_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "secret\nmore").unwrap();
        let options = SharedOptions::new("postgres://a@localhost/b", false).unwrap();
        let options = SharedOptions { password_file: Some(path.clone()), ..options };
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let why = options.password().unwrap_err().to_string();
        assert!(why.contains("chmod 600") && !why.contains("secret"), "{why}");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(options.password().unwrap().as_deref(), Some("secret"));
    }
}
