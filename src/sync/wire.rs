//! What two nodes say to each other: one message each way is an exchange.
//!
//! ```text
//! hello    who speaks, which versions, what it can take
//! has      the newest of your entries that I have applied, with all before it
//! base     the newest of my entries that I no longer keep
//! prev     what stands before the first entry below; you take it if that is what you have
//! entries  from there on, in their order
//! ```
//!
//! A mark is a place in a log and the entry there, so that two nodes notice when they mean
//! different entries by one number: a store that was restored from a backup counts again from where
//! it was. Fields that are not known are passed over, and a version that is not known is refused
//! with what to do.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::clock::Stamp;
use crate::base::limits::{
    SYNC_ENTRIES_MAX, SYNC_ENTRY_BYTES_MAX, SYNC_MESSAGE_BYTES_MAX, SYNC_SEQ_MAX,
};

/// Versions of this wire that are spoken, the oldest and the newest.
pub const SPEAKS: [u32; 2] = [1, 1];
/// Bytes of an entry beside its body, as far as sums are concerned.
pub const ENTRY_BYTES: usize = 256;

/// A place in a log, and the entry there; zeros before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The place.
    pub seq: u64,
    /// The entry.
    pub id: u64,
}

/// A change, told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place in the log of a node for one peer, without gaps, from 1.
    pub seq: u64,
    /// Drawn when it was written: tells it from every other.
    pub id: u64,
    /// When it was written.
    pub at: Stamp,
    /// The value that it takes the place of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<Stamp>,
    /// What it is about: see [`super::rules`].
    pub kind: String,
    /// Which one.
    pub key: String,
    /// Weighs more than time; see [`super::rules`].
    #[serde(default)]
    pub rank: u8,
    /// The rest.
    pub body: Value,
}

impl Entry {
    /// Its mark.
    pub fn mark(&self) -> Mark {
        Mark { seq: self.seq, id: self.id }
    }
}

/// Who speaks, and what it can take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The node.
    pub node: String,
    /// Its program, for people.
    pub program: String,
    /// Versions, the oldest and the newest.
    pub speaks: [u32; 2],
    /// What it can take.
    pub limits: Limits,
}

/// What a node can take; zeros where it has not said so yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of the body of an entry.
    pub entry_bytes: usize,
    /// Bytes of a message.
    pub message_bytes: usize,
    /// Entries of a message.
    pub n_entry: usize,
}

impl Limits {
    /// What this program can take.
    pub const OURS: Limits = Limits {
        entry_bytes: SYNC_ENTRY_BYTES_MAX,
        message_bytes: SYNC_MESSAGE_BYTES_MAX,
        n_entry: SYNC_ENTRIES_MAX,
    };

    /// The smaller of each.
    pub fn within(self, most: Limits) -> Limits {
        Limits {
            entry_bytes: self.entry_bytes.min(most.entry_bytes),
            message_bytes: self.message_bytes.min(most.message_bytes),
            n_entry: self.n_entry.min(most.n_entry),
        }
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Message {
    pub hello: Hello,
    pub to: String,
    /// Names this message; the answer to it says it again, and so it is known to be no older.
    pub nonce: u64,
    /// The last message that was heard.
    pub re: u64,
    pub clock: Stamp,
    pub has: Mark,
    pub base: Mark,
    pub prev: Mark,
    /// The newest of my entries.
    pub last: u64,
    /// Entries of mine that went, and of which I do not know that you had them.
    #[serde(default)]
    pub n_lost: u64,
    /// Entries of yours that were gone before I had them.
    #[serde(default)]
    pub n_missed: u64,
    pub entries: Vec<Entry>,
}

/// Why a message is not taken, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is none.
    #[error("that is no message of sync: {why}")]
    Foreign {
        /// What is wrong.
        why: String,
    },
    /// Its node is not the one that this key was given to.
    #[error("the key belongs to {peer}, and {node} uses it: pair the two machines again")]
    Stranger {
        /// Who speaks.
        node: String,
        /// Whose key it is.
        peer: String,
    },
    /// It is for another node.
    #[error("the message is for {to}, and this is {node}: pair the two machines again")]
    Misdirected {
        /// For whom.
        to: String,
        /// Who this is.
        node: String,
    },
    /// It cannot be called there.
    #[error("{address:?} is no address to call: {why}")]
    Address {
        /// Where.
        address: String,
        /// What is wrong.
        why: &'static str,
    },
    /// It is no peer any more.
    #[error("{node} is not paired with this machine any more; `jetforge setup` pairs two machines")]
    Unpaired {
        /// Who.
        node: String,
    },
    /// A file was sealed by somebody else, or changed.
    #[error(
        "what {name} is said to have written does not open: it was changed, or sealed before the \
         two were paired anew; export it again"
    )]
    Unsealed {
        /// The peer.
        name: String,
    },
    /// A peer says again and again that it has another log than ours.
    #[error(
        "{peer} has another log of {node} again and again, so it is not heard for a while; if two \
         machines run from one card image, stop the service on one of them, run `jetforge sync \
         renew` there and pair it again"
    )]
    Twins {
        /// The peer.
        peer: String,
        /// This node.
        node: String,
    },
    /// The store was made on another machine.
    #[error(
        "the state of {node} was made on another machine, so it speaks to nobody; stop the service \
         and run `jetforge sync adopt` if the card was moved here, or `jetforge sync renew` if \
         that machine goes on, and pair this one again"
    )]
    Moved {
        /// This node.
        node: String,
    },
    /// No version in common.
    #[error(
        "{program} speaks versions {} to {} of sync, this program {} to {}: update {}",
        theirs[0], theirs[1], SPEAKS[0], SPEAKS[1],
        if theirs[1] < SPEAKS[0] { "that one" } else { "this one" }
    )]
    Version {
        /// The other's program.
        program: String,
        /// Its versions.
        theirs: [u32; 2],
    },
}

/// What can be read of every version.
#[derive(Deserialize)]
struct Greeting {
    hello: Opening,
}

#[derive(Deserialize)]
struct Opening {
    #[serde(default)]
    program: String,
    speaks: [u32; 2],
}

impl Message {
    /// Reads a message.
    ///
    /// # Errors
    /// If it is none, of no version that is known, or beyond the limits.
    pub fn read(bytes: &[u8]) -> Result<Message, Refusal> {
        let foreign = |why: &dyn std::fmt::Display| Refusal::Foreign { why: why.to_string() };
        if bytes.len() > SYNC_MESSAGE_BYTES_MAX {
            return Err(foreign(&format!("it has more than {SYNC_MESSAGE_BYTES_MAX} bytes")));
        }
        let greeting: Greeting = serde_json::from_slice(bytes).map_err(|e| foreign(&e))?;
        let [oldest, newest] = greeting.hello.speaks;
        if newest < SPEAKS[0] || oldest > SPEAKS[1] {
            let program = greeting.hello.program.chars().take(64).collect();
            return Err(Refusal::Version { program, theirs: greeting.hello.speaks });
        }
        let message: Message = serde_json::from_slice(bytes).map_err(|e| foreign(&e))?;
        let marks = [message.has, message.base, message.prev];
        let seqs = marks.iter().map(|mark| mark.seq).chain([message.last]);
        let seqs = seqs.chain([message.n_lost, message.n_missed]);
        if seqs.chain(message.entries.iter().map(|entry| entry.seq)).any(|n| n > SYNC_SEQ_MAX) {
            return Err(foreign(&"a number is out of range"));
        }
        if message.entries.len() > SYNC_ENTRIES_MAX {
            return Err(foreign(&format!("it has more than {SYNC_ENTRIES_MAX} entries")));
        }
        Ok(message)
    }

    /// The message as it travels.
    pub fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Refuses a message that is not from `peer` to `node`.
    ///
    /// # Errors
    /// With what to do.
    pub fn check(&self, node: &str, peer: &str) -> Result<(), Refusal> {
        if self.hello.node != peer {
            let node = self.hello.node.chars().take(64).collect();
            return Err(Refusal::Stranger { node, peer: peer.to_owned() });
        }
        if self.to != node {
            let to = self.to.chars().take(64).collect();
            return Err(Refusal::Misdirected { to, node: node.to_owned() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message() -> Value {
        json!({
            "hello": {"node": "a", "program": "jetforge 9", "speaks": [1, 7],
                "limits": {"entry_bytes": 1, "message_bytes": 1, "n_entry": 1}},
            "to": "b", "nonce": 1, "re": 0, "clock": 5,
            "has": {"seq": 0, "id": 0}, "base": {"seq": 0, "id": 0}, "prev": {"seq": 0, "id": 0},
            "last": 0, "entries": [], "of_later_versions": true,
        })
    }

    fn read(value: &Value) -> Result<Message, Refusal> {
        Message::read(value.to_string().as_bytes())
    }

    #[test]
    fn a_newer_peer_that_still_speaks_ours_is_understood() {
        let message = read(&message()).unwrap();
        assert_eq!(Message::read(&message.write()), Ok(message.clone()));
        assert_eq!(message.check("b", "a"), Ok(()));
        assert!(matches!(message.check("c", "a"), Err(Refusal::Misdirected { .. })));
        assert!(matches!(message.check("b", "x"), Err(Refusal::Stranger { .. })));
    }

    #[test]
    fn who_speaks_otherwise_hears_what_to_do() {
        for (speaks, advice) in [([8, 9], "update this one"), ([0, 0], "update that one")] {
            let mut other = json!({"hello": {"program": "jetforge 9"}, "entries": "otherwise"});
            other["hello"]["speaks"] = json!(speaks);
            let error = read(&other).unwrap_err().to_string();
            assert!(error.ends_with(advice), "{error}");
        }
        let mut huge = message();
        huge["has"]["seq"] = json!(u64::MAX);
        assert!(matches!(read(&huge), Err(Refusal::Foreign { .. })));
        let whole = message().to_string();
        for n in 0..whole.len() {
            assert!(Message::read(&whole.as_bytes()[..n]).is_err(), "cut at {n}");
        }
    }
}
