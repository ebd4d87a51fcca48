//! Finding appliances on the LAN by multicast DNS, and being found.
//!
//! ```text
//! browse    PTR? _jetforge._tcp.local   to 224.0.0.251:5353, from a port of its own
//! answer    PTR -> NAME._jetforge._tcp.local   SRV -> port   TXT -> node, version   A -> address
//! ```
//!
//! Only this one service is spoken of: a question for anything else gets no answer, and what comes
//! back is read for ours alone. A question from a port of its own is answered to that port, as
//! RFC 6762 wants it (6.7), so browsing needs no port 5353 and disturbs no other responder. Whoever
//! answers is believed where it says it is and nothing more: what is found is an address to be
//! typed, and pairing finds out who it is.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::base::limits::{DISCOVERED_MAX, DISCOVERY_BYTES_MAX, DNS_JUMPS_MAX, DNS_RECORDS_MAX};

/// Where multicast DNS is spoken.
pub const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(224, 0, 0, 251), 5353);

const SERVICE: [&str; 3] = ["_jetforge", "_tcp", "local"];
const A: u16 = 1;
const PTR: u16 = 12;
const TXT: u16 = 16;
const SRV: u16 = 33;
const ANY: u16 = 255;
const INTERNET: u16 = 1;
/// The bit of a class that asks for an answer to the asker alone, or clears old records.
const TOP_BIT: u16 = 0x8000;
/// Seconds for which an answer holds; RFC 6762 wants no more for an asker with a port of its own.
const TTL_S: u32 = 10;
/// How often a responder looks whether it is to end.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Bytes of a label.
const LABEL_BYTES_MAX: usize = 63;

/// What a machine says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// What people call it.
    pub name: String,
    /// What it calls itself.
    pub node: String,
    /// Where its service listens.
    pub port: u16,
}

/// A machine that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What people call it.
    pub name: String,
    /// What it calls itself, where it said so.
    pub node: String,
    /// Its service.
    pub address: SocketAddr,
}

/// Answers questions for this machine's service until it is dropped.
pub struct Responder {
    address: SocketAddr,
    stops: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Answers on `address`: [`GROUP`], whose port is shared with other responders, or any other
    /// where nobody is asked but this one. A machine without a network has no group, and joins it
    /// as soon as there is one: a board starts faster than its network.
    ///
    /// # Errors
    /// If the system does not give the port.
    pub fn start(address: SocketAddrV4, announcement: Announcement) -> io::Result<Responder> {
        let is_group = address.ip().is_multicast();
        let own = if is_group { Ipv4Addr::UNSPECIFIED } else { *address.ip() };
        let socket = shared_socket(SocketAddrV4::new(own, address.port()))?;
        socket.set_read_timeout(Some(LOOK_EVERY))?;
        let local = socket.local_addr()?;
        let stops = Arc::new(AtomicBool::new(false));
        let group = is_group.then_some(SocketAddr::V4(address));
        let own = Arc::clone(&stops);
        let work = move || {
            let mut is_member = !is_group;
            while !own.load(Ordering::Relaxed) {
                let join = || socket.join_multicast_v4(address.ip(), &Ipv4Addr::UNSPECIFIED);
                is_member = is_member || join().is_ok();
                respond(&socket, group, &announcement);
            }
        };
        let thread = std::thread::Builder::new().name("discovery".to_owned()).spawn(work)?;
        Ok(Responder { address: local, stops, thread: Some(thread) })
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A socket whose port others may have as well.
fn shared_socket(address: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &SocketAddr::V4(address))?;
    Ok(UdpSocket::from(socket))
}

/// Answers one question, or none came.
fn respond(socket: &UdpSocket, group: Option<SocketAddr>, announcement: &Announcement) {
    let mut bytes = [0; DISCOVERY_BYTES_MAX];
    let Ok((n, from)) = socket.recv_from(&mut bytes) else { return };
    let Some(id) = asked_for_us(&bytes[..n]) else { return };
    let Some(own) = address_towards(from) else { return };
    let shares_port = group.is_some_and(|group| group.port() == from.port());
    let id = if shares_port { 0 } else { id };
    let answer = answer(id, !shares_port, announcement, own);
    let to = group.filter(|_| shares_port).unwrap_or(from);
    // Whoever asked asks again.
    let _ = socket.send_to(&answer, to);
}

/// The address under which another machine sees this one.
fn address_towards(other: SocketAddr) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(other).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// Asks `group` who is there and hears for `wait`; each machine once, by its name.
///
/// # Errors
/// If nothing can be sent.
pub fn browse(group: SocketAddrV4, wait: Duration) -> io::Result<Vec<Found>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.send_to(&question(), group)?;
    let end = Instant::now() + wait;
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    let mut bytes = [0; DISCOVERY_BYTES_MAX];
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|t| !t.is_zero()) {
        socket.set_read_timeout(Some(left))?;
        match socket.recv_from(&mut bytes) {
            Ok((n, from)) => {
                let news = read_answer(&bytes[..n], from.ip());
                for own in news.into_iter().flatten() {
                    if found.len() < DISCOVERED_MAX {
                        found.insert(format!("{} {}", own.name, own.address), own);
                    }
                }
            }
            Err(error) if is_timeout(&error) => break,
            // An answer of a port that nobody listens on: others may still come.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found.into_values().collect())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

// Messages.

fn question() -> Vec<u8> {
    let mut out = vec![0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    put_question(&mut out);
    out
}

fn put_question(out: &mut Vec<u8>) {
    put_name(out, &SERVICE);
    put_u16(out, PTR);
    put_u16(out, INTERNET);
}

/// The answer to a question with this id, which repeats it where its asker is no responder.
fn answer(id: u16, repeats: bool, own: &Announcement, address: Ipv4Addr) -> Vec<u8> {
    let label = label(&own.name);
    let instance = [&[label.as_str()], &SERVICE[..]].concat();
    let host = [label.as_str(), "local"];
    let mut out = Vec::new();
    put_u16(&mut out, id);
    for n in [0x8400, u16::from(repeats), 4, 0, 0] {
        put_u16(&mut out, n);
    }
    if repeats {
        put_question(&mut out);
    }
    let mut data = Vec::new();
    put_name(&mut data, &instance);
    put_record(&mut out, &SERVICE, PTR, INTERNET, &data);
    data = vec![0; 4];
    put_u16(&mut data, own.port);
    put_name(&mut data, &host);
    let unique = if repeats { INTERNET } else { INTERNET | TOP_BIT };
    put_record(&mut out, &instance, SRV, unique, &data);
    data.clear();
    for text in [format!("node={}", own.node), format!("v={}", env!("CARGO_PKG_VERSION"))] {
        data.push(u8::try_from(text.len()).unwrap_or(0));
        data.extend_from_slice(&text.as_bytes()[..text.len().min(255)]);
    }
    put_record(&mut out, &instance, TXT, unique, &data);
    put_record(&mut out, &host, A, unique, &address.octets());
    out
}

/// A name as one label: plain characters, and not too many.
fn label(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let label: String = name.chars().map(plain).take(LABEL_BYTES_MAX).collect();
    if label.is_empty() { "jetforge".to_owned() } else { label }
}

fn put_u16(out: &mut Vec<u8>, n: u16) {
    out.extend_from_slice(&n.to_be_bytes());
}

fn put_name(out: &mut Vec<u8>, labels: &[&str]) {
    for label in labels {
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
}

fn put_record(out: &mut Vec<u8>, name: &[&str], kind: u16, class: u16, data: &[u8]) {
    put_name(out, name);
    put_u16(out, kind);
    put_u16(out, class);
    out.extend_from_slice(&TTL_S.to_be_bytes());
    put_u16(out, data.len() as u16);
    out.extend_from_slice(data);
}

/// A message that is read from front to back; names may point back into it.
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

struct Record {
    name: Vec<String>,
    kind: u16,
    /// Where its data stands.
    data: std::ops::Range<usize>,
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let bytes = self.message.get(self.at..self.at.checked_add(n)?)?;
        self.at += n;
        Some(bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn name(&mut self) -> Option<Vec<String>> {
        let (mut labels, mut n_jump, mut back) = (Vec::new(), 0, None);
        loop {
            let n = usize::from(self.bytes(1)?[0]);
            match n {
                0 => break,
                1..=LABEL_BYTES_MAX => {
                    labels.push(String::from_utf8_lossy(self.bytes(n)?).to_ascii_lowercase());
                }
                0xc0.. => {
                    let to = (n & 0x3f) << 8 | usize::from(self.bytes(1)?[0]);
                    back.get_or_insert(self.at);
                    self.at = to;
                    n_jump += 1;
                }
                _ => return None,
            }
            if n_jump > DNS_JUMPS_MAX || labels.len() > DNS_JUMPS_MAX {
                return None;
            }
        }
        self.at = back.unwrap_or(self.at);
        Some(labels)
    }

    fn record(&mut self) -> Option<Record> {
        let (name, kind, _class) = (self.name()?, self.u16()?, self.u16()?);
        self.bytes(4)?;
        let n = usize::from(self.u16()?);
        let start = self.at;
        self.bytes(n)?;
        Some(Record { name, kind, data: start..start + n })
    }
}

fn is_service(name: &[String]) -> bool {
    name.iter().map(String::as_str).eq(SERVICE)
}

/// The id of a question for our service.
fn asked_for_us(message: &[u8]) -> Option<u16> {
    let mut reader = Reader { message, at: 0 };
    let (id, flags, n_question) = (reader.u16()?, reader.u16()?, reader.u16()?);
    reader.bytes(6)?;
    if flags & TOP_BIT != 0 {
        return None;
    }
    for _ in 0..usize::from(n_question).min(DNS_RECORDS_MAX) {
        let (name, kind, class) = (reader.name()?, reader.u16()?, reader.u16()?);
        let is_kind = kind == PTR || kind == ANY;
        if is_kind && class & !TOP_BIT == INTERNET && is_service(&name) {
            return Some(id);
        }
    }
    None
}

/// The machines of an answer, which are where it says by its port and came from.
fn read_answer(message: &[u8], from: IpAddr) -> Option<Vec<Found>> {
    let mut reader = Reader { message, at: 0 };
    let (_id, flags, n_question) = (reader.u16()?, reader.u16()?, reader.u16()?);
    let counts = [reader.u16()?, reader.u16()?, reader.u16()?];
    if flags & TOP_BIT == 0 {
        return None;
    }
    for _ in 0..usize::from(n_question).min(DNS_RECORDS_MAX) {
        reader.name()?;
        reader.bytes(4)?;
    }
    let n_record = counts.iter().map(|n| usize::from(*n)).sum::<usize>().min(DNS_RECORDS_MAX);
    let mut ports: BTreeMap<String, u16> = BTreeMap::new();
    let mut nodes: BTreeMap<String, String> = BTreeMap::new();
    for _ in 0..n_record {
        let record = reader.record()?;
        let [name, rest @ ..] = &record.name[..] else { continue };
        if !is_service(rest) {
            continue;
        }
        let data = &message[record.data];
        match (record.kind, data) {
            (SRV, [_, _, _, _, high, low, ..]) => {
                ports.insert(name.clone(), u16::from_be_bytes([*high, *low]));
            }
            (TXT, data) => drop(nodes.insert(name.clone(), node_of(data))),
            _ => {}
        }
    }
    let found = ports.into_iter().filter(|(_, port)| *port > 0).map(|(name, port)| Found {
        node: nodes.remove(&name).unwrap_or_default(),
        address: SocketAddr::new(from, port),
        name,
    });
    Some(found.collect())
}

/// The node in a TXT record.
fn node_of(mut data: &[u8]) -> String {
    while let Some((&n, rest)) = data.split_first() {
        let Some((text, rest)) = rest.split_at_checked(usize::from(n)) else { break };
        if let Some(node) = text.strip_prefix(b"node=") {
            let plain = node.iter().filter(|byte| byte.is_ascii_hexdigit()).take(64);
            return plain.map(|byte| char::from(*byte)).collect();
        }
        data = rest;
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn announcement() -> Announcement {
        Announcement { name: "Nano One".into(), node: "00112233445566aa".into(), port: 8080 }
    }

    #[test]
    fn who_asks_on_the_loopback_finds_the_service_and_its_node() {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let responder = Responder::start(any, announcement()).unwrap();
        let SocketAddr::V4(address) = responder.address() else { unreachable!() };
        let found = browse(address, Duration::from_secs(1)).unwrap();
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        let node = announcement().node;
        assert_eq!(found, [Found { name: "nano-one".into(), node, address: here }]);
    }

    #[test]
    fn others_questions_are_none_of_ours() {
        assert_eq!(asked_for_us(&question()), Some(0));
        let mut other = question();
        other[14] = b'x';
        assert_eq!(asked_for_us(&other), None);
        let reply = answer(7, true, &announcement(), Ipv4Addr::LOCALHOST);
        assert_eq!(asked_for_us(&reply), None, "an answer is no question");
        assert_eq!(read_answer(&question(), Ipv4Addr::LOCALHOST.into()), None);
    }

    #[test]
    fn names_that_point_back_are_followed_and_loops_are_not() {
        let mut message = question();
        let n = message.len();
        message[5] = 2;
        message.extend_from_slice(&[0xc0, 12, 0, 12, 0, 1]);
        let mut reader = Reader { message: &message, at: n };
        assert!(is_service(&reader.name().unwrap()));
        assert_eq!(reader.at, n + 2);
        let looped = [0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0xc0, 12, 0, 0];
        assert_eq!(read_answer(&looped, Ipv4Addr::LOCALHOST.into()), None);
    }

    #[test]
    fn an_announcement_fits_whatever_a_machine_is_called() {
        for name in ["", "ключ", &"x".repeat(400), "a.b c"] {
            let own = Announcement { name: name.into(), ..announcement() };
            let reply = answer(0, false, &own, Ipv4Addr::LOCALHOST);
            assert_eq!(read_answer(&reply, Ipv4Addr::LOCALHOST.into()).unwrap().len(), 1, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_message_breaks_the_reader(
            flags in any::<u8>(),
            tail in prop::collection::vec(any::<u8>(), 0..200),
            at in 0usize..150,
            byte: u8,
        ) {
            let mut noise = vec![0, 0, flags, 0, 0, 1, 0, 3, 0, 1, 0, 1];
            noise.extend(tail);
            let _ = (asked_for_us(&noise), read_answer(&noise, Ipv4Addr::LOCALHOST.into()));
            let mut reply = answer(1, true, &announcement(), Ipv4Addr::LOCALHOST);
            let at = at % reply.len();
            reply[at] = byte;
            let _ = (asked_for_us(&reply), read_answer(&reply, Ipv4Addr::LOCALHOST.into()));
            let _ = read_answer(&reply[..at], Ipv4Addr::LOCALHOST.into());
        }
    }
}
