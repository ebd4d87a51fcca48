//! The machines that this one works with, and the name by which they know it.
//!
//! A pairing is mutual: we send a key that is sealed here, and know theirs by its digest alone.

use std::path::Path;

use rusqlite::Connection;

use super::shared::{Shared, SharedOptions};
use super::sql::Row;
use super::sql::Value::{self, Bytes, Int, Text};
use super::sync::SyncTx;
use super::{Store, StoreError, connection, schema};
use crate::base::hash::hex;
use crate::base::limits::PEERS_MAX;
use crate::seal::{self, KEY_LEN, Sealer};

/// A machine that this one is paired with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// What it calls itself: see [`Store::node`].
    pub node: String,
    /// What people call it.
    pub name: String,
    /// Where it is, such as `http://10.0.0.7:9999`; empty when it only calls us.
    pub address: String,
    /// Whether it paired by a code that was shown here: then it is a hub.
    pub paired_here: bool,
    /// The key that we send, sealed on the disk.
    pub key: String,
    /// SHA-256 of the key that it sends.
    pub key_digest: [u8; 32],
    /// SHA-256 of its certificate, where one was pinned.
    pub certificate: Option<[u8; 32]>,
    /// When they were paired.
    pub paired_ms: i64,
}

const COLUMNS: &str = "node, name, address, sealed_key, key_digest, certificate, paired_ms, \
    paired_here";

fn key_name(node: &str) -> String {
    format!("key for {node}")
}

impl SyncTx<'_> {
    /// A peer out of its row.
    fn peer_of(&self, mut row: Row) -> Result<Peer, StoreError> {
        let node = row.text(0)?;
        let name = key_name(&node);
        let key = String::from_utf8(self.unseal(name.clone(), &row.bytes(3)?)?);
        Ok(Peer {
            name: row.text(1)?,
            address: row.text(2)?,
            key: key.map_err(|_| StoreError::Sealed { what: name.clone() })?,
            key_digest: row.array(4)?.ok_or(StoreError::Sealed { what: name })?,
            certificate: row.array(5)?,
            paired_ms: row.int(6)?,
            paired_here: row.int(7)? != 0,
            node,
        })
    }

    fn put_peer(&mut self, peer: &Peer) -> Result<(), StoreError> {
        let others = "SELECT count(*) FROM peers WHERE node <> ?1";
        let n = self.one(others, &[Text(&peer.node)])?.map_or(Ok(0), |mut row| row.int(0))?;
        let n = usize::try_from(n).unwrap_or(usize::MAX);
        if n >= PEERS_MAX {
            return Err(StoreError::PeersFull { n });
        }
        let sealed = self.seal(&key_name(&peer.node), peer.key.as_bytes())?;
        // Not a replacement: that deletes the row, and with it all that is told to the peer and was
        // heard of it.
        let sql = format!(
            "INSERT INTO peers ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
             ON CONFLICT (node) DO UPDATE SET name = excluded.name, address = excluded.address, \
             sealed_key = excluded.sealed_key, key_digest = excluded.key_digest, \
             certificate = excluded.certificate, paired_ms = excluded.paired_ms, \
             paired_here = excluded.paired_here"
        );
        // No text of a server has a zero, and no name needs one.
        let name = peer.name.replace('\0', "");
        let certificate = peer.certificate.as_ref().map_or(Value::Null, |own| Bytes(own));
        let values = [
            Text(&peer.node),
            Text(&name),
            Text(&peer.address),
            Bytes(&sealed),
            Bytes(&peer.key_digest),
            certificate,
            Int(peer.paired_ms),
            Int(peer.paired_here.into()),
        ];
        self.run(&sql, &values).map(drop)
    }

    /// All peers, by their names.
    pub fn known_peers(&mut self) -> Result<Vec<Peer>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM peers ORDER BY name, node");
        let rows = self.rows(&sql, &[])?;
        // One whose key does not open must not hide the others.
        let opened = rows.into_iter().filter_map(|row| {
            let peer = self.peer_of(row);
            peer.inspect_err(|error| tracing::error!(%error, "a peer cannot be read")).ok()
        });
        Ok(opened.collect())
    }

    fn pins(&mut self) -> Result<Vec<(String, [u8; 32])>, StoreError> {
        let sql = "SELECT address, certificate FROM peers WHERE certificate IS NOT NULL \
                   ORDER BY node";
        let pin = |mut row: Row| Ok((row.text(0)?, row.array(1)?.unwrap_or_default()));
        self.rows(sql, &[])?.into_iter().map(pin).collect()
    }
}

impl Store {
    /// What this machine calls itself towards others: 16 hexadecimal digits, drawn once. Processes
    /// that share a store are one machine to others.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn node(&self) -> Result<String, StoreError> {
        match self.0.shared.get() {
            Some(shared) => shared.node(),
            None => self.own_node(),
        }
    }

    /// What this store alone is called: no other process has it.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn own_node(&self) -> Result<String, StoreError> {
        if let Some(node) = self.read(|connection| Ok(schema::meta(connection, "node")?))? {
            return Ok(node);
        }
        let drawn = drawn_node()?;
        self.write(move |connection| node(connection, drawn))
    }

    /// The machine that this store was made on, as [`Store::set_machine`] wrote it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn machine(&self) -> Result<Option<String>, StoreError> {
        self.read(|connection| Ok(schema::meta(connection, "machine")?))
    }

    /// Keeps which machine this store belongs to.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn set_machine(&self, machine: String) -> Result<(), StoreError> {
        self.write(move |connection| Ok(schema::set_meta(connection, "machine", machine)?))
    }

    /// Draws a new name for this machine and forgets all peers, who know the old one.
    ///
    /// # Errors
    /// If the disk does not take it; then nothing has changed. A store that is shared keeps its
    /// name: others speak under it.
    pub fn renew_node(&self) -> Result<String, StoreError> {
        if let Some(shared) = self.0.shared.get() {
            return Err(shared.refuses("its name is that of all its processes; forget the peers"));
        }
        let drawn = drawn_node()?;
        self.write(move |connection| {
            connection.execute("DELETE FROM peers", [])?;
            connection.execute("DELETE FROM acts", [])?;
            schema::set_meta(connection, "node", &drawn)?;
            Ok(drawn)
        })
    }

    /// Keeps a peer, in the place of what was known of its node.
    ///
    /// # Errors
    /// If there are as many as there can be, or the disk does not take it.
    pub fn insert_peer(&self, peer: Peer) -> Result<(), StoreError> {
        self.sync(move |tx| tx.put_peer(&peer))
    }

    /// All peers, by their names.
    ///
    /// # Errors
    /// If they cannot be read. One whose key does not open is left out, and told in the log.
    pub fn peers(&self) -> Result<Vec<Peer>, StoreError> {
        self.sync_look(|tx| tx.known_peers())
    }

    /// A peer by its node.
    ///
    /// # Errors
    /// If it cannot be read, or its key does not open.
    pub fn peer(&self, node: &str) -> Result<Option<Peer>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM peers WHERE node = ?1");
        self.sync_look(|tx| {
            let row = tx.one(&sql, &[Text(node)])?;
            row.map(|row| tx.peer_of(row)).transpose()
        })
    }

    /// Keeps where a peer is called, and its certificate; whether there is such a peer.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn move_peer(
        &self,
        node: &str,
        address: &str,
        certificate: Option<[u8; 32]>,
    ) -> Result<bool, StoreError> {
        let (node, address) = (node.to_owned(), address.to_owned());
        self.sync(move |tx| {
            let sql = "UPDATE peers SET address = ?2, certificate = ?3 WHERE node = ?1";
            let certificate = certificate.as_ref().map_or(Value::Null, |own| Bytes(own));
            Ok(tx.run(sql, &[Text(&node), Text(&address), certificate])? > 0)
        })
    }

    /// Forgets a peer and what waits for it; whether there was one.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn delete_peer(&self, node: &str) -> Result<bool, StoreError> {
        let node = node.to_owned();
        self.sync(move |tx| {
            tx.run("DELETE FROM acts WHERE peer = ?1", &[Text(&node)])?;
            Ok(tx.run("DELETE FROM peers WHERE node = ?1", &[Text(&node)])? > 0)
        })
    }
}

/// The certificates of the machines that a state directory is paired with, each with the address of
/// its machine; also while a service has the store. None where there is no store yet. Where it
/// shares its peers with others, they are read there.
///
/// # Errors
/// If it cannot be read.
pub fn pinned(
    dir: &Path,
    shared: Option<&SharedOptions>,
) -> Result<Vec<(String, [u8; 32])>, StoreError> {
    if let Some(options) = shared {
        return Shared::open(dir, options)?.look(|tx| tx.pins());
    }
    let path = connection::file(dir);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let (reader, sealer) = (connection::reader(&path)?, Sealer::new(&[0; KEY_LEN], "none"));
    // Pins are not sealed, so no key is needed, nor made.
    SyncTx::new(&mut &reader, &sealer).pins()
}

/// 16 hexadecimal digits.
pub(super) fn drawn_node() -> Result<String, StoreError> {
    let failed = |source| StoreError::File { path: "random".into(), source };
    Ok(hex(&seal::random().map_err(failed)?[..8]))
}

/// The node of a store; `drawn` if it has none yet.
fn node(connection: &Connection, drawn: String) -> Result<String, StoreError> {
    if let Some(node) = schema::meta(connection, "node")? {
        return Ok(node);
    }
    schema::set_meta(connection, "node", &drawn)?;
    Ok(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(i: usize) -> Peer {
        Peer {
            node: format!("{i:016x}"),
            name: format!("pc-{i:03}"),
            address: "http://127.0.0.1:9999".into(),
            key: format!("jf-secret-{i}"),
            certificate: (i % 2 == 0).then_some([7; 32]),
            ..Peer::default()
        }
    }

    #[test]
    fn a_peer_is_kept_with_its_key_sealed_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let node = {
            let store = Store::open(dir.path()).unwrap().store;
            store.insert_peer(peer(1)).unwrap();
            store.insert_peer(Peer { address: String::new(), ..peer(2) }).unwrap();
            store.insert_peer(peer(2)).unwrap();
            store.node().unwrap()
        };
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!bytes.windows(9).any(|part| part == b"jf-secret"));
        }
        let store = Store::open(dir.path()).unwrap().store;
        assert_eq!(store.node().unwrap(), node, "drawn once");
        assert_eq!(store.peers().unwrap(), [peer(1), peer(2)]);
        assert_eq!(store.peer(&peer(2).node).unwrap(), Some(peer(2)));
        // Beside whoever has the store.
        assert_eq!(pinned(dir.path(), None).unwrap(), [(peer(2).address, [7; 32])]);
        assert!(pinned(&dir.path().join("none"), None).unwrap().is_empty());
        assert!(store.delete_peer(&peer(1).node).unwrap());
        assert!(!store.delete_peer(&peer(1).node).unwrap());
        assert_eq!(store.peer(&peer(1).node).unwrap(), None);
    }

    #[test]
    fn who_had_no_address_before_is_a_hub_still() {
        let dir = tempfile::tempdir().unwrap();
        let mut before = connection::writer(&connection::file(dir.path())).unwrap();
        schema::migrate_by(&mut before, &schema::STEPS[..5]).unwrap();
        let sql = "INSERT INTO peers VALUES ('pc', 'pc', '', x'00', x'00', NULL, 1), \
                   ('nano', 'nano', 'http://nano:8080', x'00', x'00', NULL, 1)";
        before.execute_batch(sql).unwrap();
        drop(before);
        let store = Store::open(dir.path()).unwrap().store;
        let is_hub = |node| store.sync_look(move |tx| tx.has_paired_here(node)).unwrap();
        assert_eq!([is_hub("pc"), is_hub("nano")], [true, false]);
    }

    #[test]
    fn a_new_name_is_known_to_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap().store;
        let old = store.node().unwrap();
        store.insert_peer(peer(1)).unwrap();
        let new = store.renew_node().unwrap();
        assert_ne!(new, old);
        assert_eq!((store.node().unwrap(), store.peers().unwrap()), (new, Vec::new()));
    }
}
