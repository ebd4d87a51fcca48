//! A network between two services that does what it should not, by a seed.
//!
//! ```text
//! refuse       nobody is there               half-open    a part goes on, and then nothing does
//! cut request  the other side hears a part   twice        the other side hears it twice
//! cut answer   the caller hears a part       swallow      the caller hears nothing
//! slow         both ways take their time     overtaken    it arrives behind the one after it
//! ```
//!
//! Each call is a connection with one request. It draws a card of a deck that has every fault once
//! and as many cards without one, so a few dozen calls meet them all. A trap snaps when a call gets
//! to a stage of its way: there a test ends a process.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longest wait for bytes of one call.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest pause of a slow network, each way.
const SLOW_MS_MAX: u64 = 150;
/// How long a half-open connection stays at most.
const HALF_OPEN_MS_MAX: u64 = 400;

/// Numbers of a seed: splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// What happens to a call; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Refuse,
    CutRequest,
    Twice,
    CutAnswer,
    Swallow,
    Slow,
    HalfOpen,
    Overtaken,
}

/// Each of them.
pub const FAULTS: [Fault; 8] = [
    Fault::Refuse,
    Fault::CutRequest,
    Fault::Twice,
    Fault::CutAnswer,
    Fault::Swallow,
    Fault::Slow,
    Fault::HalfOpen,
    Fault::Overtaken,
];

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The network has the request.
    Asked,
    /// The other side has it.
    Sent,
    /// The network has the answer.
    Answered,
}

/// Each of them.
pub const STAGES: [Stage; 3] = [Stage::Asked, Stage::Sent, Stage::Answered];

type Trap = (Stage, Box<dyn FnOnce() + Send>);

/// What all connections of a proxy share.
#[derive(Default)]
pub struct Line {
    /// Where calls go; `None` while nobody is there.
    pub target: Mutex<Option<SocketAddr>>,
    /// No more faults.
    pub is_calm: AtomicBool,
    n_fault: [AtomicU64; FAULTS.len()],
    n_carried: AtomicU64,
    trap: Mutex<Option<Trap>>,
    overtaken: Mutex<Vec<Vec<u8>>>,
}

/// A proxy with faults.
pub struct Proxy {
    pub address: SocketAddr,
    line: Arc<Line>,
}

impl Deref for Proxy {
    type Target = Line;

    fn deref(&self) -> &Line {
        &self.line
    }
}

impl Proxy {
    pub fn start(seed: u64) -> Proxy {
        Proxy::with_deck(Deck { random: Random(seed), cards: Vec::new() })
    }

    fn with_deck(mut deck: Deck) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let line: Arc<Line> = Arc::default();
        let own = Arc::clone(&line);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let fault = match own.is_calm.load(Ordering::Relaxed) {
                    true => None,
                    false => deck.draw(),
                };
                let (line, percent) = (Arc::clone(&own), deck.random.below(100));
                std::thread::spawn(move || drop(line.carry(stream, fault, percent)));
            }
        });
        Proxy { address, line }
    }
}

/// Cards of a seed.
struct Deck {
    random: Random,
    cards: Vec<Option<Fault>>,
}

impl Deck {
    fn draw(&mut self) -> Option<Fault> {
        if self.cards.is_empty() {
            self.cards = FAULTS.iter().flat_map(|fault| [Some(*fault), None]).collect();
            for i in (1..self.cards.len()).rev() {
                self.cards.swap(i, self.random.below(i as u64 + 1) as usize);
            }
        }
        self.cards.pop().flatten()
    }
}

impl Line {
    /// How often each fault of [`FAULTS`] happened.
    pub fn n_faults(&self) -> [u64; FAULTS.len()] {
        self.n_fault.each_ref().map(|n| n.load(Ordering::Relaxed))
    }

    /// Calls whose answers came as far as here.
    pub fn n_carried(&self) -> u64 {
        self.n_carried.load(Ordering::Relaxed)
    }

    /// Runs `what` in the next call that gets so far, and at that moment.
    pub fn set_trap(&self, stage: Stage, what: impl FnOnce() + Send + 'static) {
        *self.trap.lock().unwrap() = Some((stage, Box::new(what)));
    }

    fn reach(&self, stage: Stage) {
        let trap = self.trap.lock().unwrap().take_if(|trap| trap.0 == stage);
        if let Some((_, what)) = trap {
            what();
        }
    }

    fn count(&self, fault: Fault) {
        self.n_fault[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Carries one request and its answer, or what the fault leaves of them. Of what is cut, so
    /// many of a hundred parts come through, and so long are pauses.
    fn carry(&self, mut from: TcpStream, fault: Option<Fault>, percent: u64) -> Result<()> {
        from.set_read_timeout(Some(PATIENCE))?;
        let Some(target) = *self.target.lock().unwrap() else { return Ok(()) };
        if let Some(fault) = fault.filter(|fault| *fault != Fault::Overtaken) {
            self.count(fault);
        }
        if fault == Some(Fault::Refuse) {
            return Ok(());
        }
        let request = read_http(&mut from)?;
        self.reach(Stage::Asked);
        let n_part = |bytes: &[u8]| (bytes.len() - 1) * percent as usize / 100;
        let pause = |ms_max: u64| std::thread::sleep(Duration::from_millis(ms_max * percent / 100));
        match fault {
            Some(Fault::CutRequest) => {
                return connect(target)?.write_all(&request[..n_part(&request)]);
            }
            Some(Fault::HalfOpen) => {
                let mut to = connect(target)?;
                to.write_all(&request[..n_part(&request)])?;
                pause(HALF_OPEN_MS_MAX);
                return Ok(());
            }
            Some(Fault::Overtaken) => {
                self.overtaken.lock().unwrap().push(request);
                return Ok(());
            }
            Some(Fault::Twice) => drop(ask(target, &request)),
            Some(Fault::Slow) => pause(SLOW_MS_MAX),
            _ => {}
        }
        let mut to = connect(target)?;
        to.write_all(&request)?;
        self.reach(Stage::Sent);
        let mut answer = read_http(&mut to)?;
        self.reach(Stage::Answered);
        self.deliver_overtaken(target);
        match fault {
            Some(Fault::CutAnswer) => answer.truncate(n_part(&answer)),
            Some(Fault::Swallow) => answer.clear(),
            Some(Fault::Slow) => pause(SLOW_MS_MAX),
            _ => {}
        }
        self.n_carried.fetch_add(1, Ordering::Relaxed);
        from.write_all(&answer)
    }

    /// What this call has overtaken comes now; nobody waits for its answer any more.
    fn deliver_overtaken(&self, target: SocketAddr) {
        for request in std::mem::take(&mut *self.overtaken.lock().unwrap()) {
            if ask(target, &request).is_ok() {
                self.count(Fault::Overtaken);
            }
        }
    }
}

fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(target)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn ask(target: SocketAddr, request: &[u8]) -> Result<Vec<u8>> {
    let mut stream = connect(target)?;
    stream.write_all(request)?;
    read_http(&mut stream)
}

/// A request or an answer, by its `content-length`.
pub fn read_http(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 65_536];
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Err(Error::from(ErrorKind::UnexpectedEof));
        }
        bytes.extend_from_slice(&buffer[..n]);
        let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.and_then(|n| n.trim().parse().ok()).unwrap_or(0);
        if bytes.len() >= end + 4 + length {
            return Ok(bytes);
        }
    }
}

/// A service that answers each request with its own bytes, and remembers what it heard whole.
fn echo() -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let heard: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let own = Arc::clone(&heard);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            if let Ok(request) = read_http(&mut stream) {
                own.lock().unwrap().push(request.clone());
                let _ = stream.write_all(&request);
            }
        }
    });
    (address, heard)
}

#[test]
fn each_fault_of_the_network_is_what_it_says() {
    let text =
        |n: usize| format!("POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\nnr {n}").into_bytes();
    // What the caller hears of its first call, and which calls the other side hears whole.
    for (fault, is_answered, heard_there) in [
        (None, true, vec![0, 1]),
        (Some(Fault::Refuse), false, vec![1]),
        (Some(Fault::CutRequest), false, vec![1]),
        (Some(Fault::Twice), true, vec![0, 0, 1]),
        (Some(Fault::CutAnswer), false, vec![0, 1]),
        (Some(Fault::Swallow), false, vec![0, 1]),
        (Some(Fault::Slow), true, vec![0, 1]),
        (Some(Fault::HalfOpen), false, vec![1]),
        (Some(Fault::Overtaken), false, vec![1, 0]),
    ] {
        let proxy = Proxy::with_deck(Deck { random: Random(1), cards: vec![None, fault] });
        let (address, heard) = echo();
        *proxy.target.lock().unwrap() = Some(address);
        let first = ask(proxy.address, &text(0)).ok();
        assert_eq!(first, is_answered.then(|| text(0)), "{fault:?}");
        let second = ask(proxy.address, &text(1)).ok();
        assert_eq!(second, Some(text(1)), "{fault:?}");
        let expected: Vec<Vec<u8>> = heard_there.into_iter().map(text).collect();
        assert_eq!(*heard.lock().unwrap(), expected, "{fault:?}");
        let n_fault: u64 = proxy.n_faults().iter().sum();
        assert_eq!(n_fault, u64::from(fault.is_some()), "{fault:?}");
    }
}

#[test]
fn a_trap_snaps_once_and_where_it_was_set() {
    let mut deck = Deck { random: Random(5), cards: Vec::new() };
    let drawn: Vec<Option<Fault>> = (0..16).map(|_| deck.draw()).collect();
    let n = |fault: &Fault| drawn.iter().filter(|card| **card == Some(*fault)).count();
    assert!(FAULTS.iter().all(|fault| n(fault) == 1), "a deck has each once: {drawn:?}");
    for (stage, n_there) in [(Stage::Asked, 0), (Stage::Sent, 1), (Stage::Answered, 1)] {
        let proxy = Proxy::start(1);
        proxy.is_calm.store(true, Ordering::Relaxed);
        let (address, heard) = echo();
        *proxy.target.lock().unwrap() = Some(address);
        let (tell, told) = std::sync::mpsc::channel();
        let of_then = Arc::clone(&heard);
        proxy.set_trap(stage, move || tell.send(of_then.lock().unwrap().len()).unwrap());
        let request = b"GET / HTTP/1.1\r\ncontent-length: 0\r\n\r\n";
        for _ in 0..2 {
            assert!(ask(proxy.address, request).is_ok());
        }
        let seen: Vec<usize> = told.try_iter().collect();
        // The other side may not have looked yet when it was only sent.
        assert_eq!(seen.len(), 1, "{stage:?}");
        assert!(seen[0] <= n_there && (stage == Stage::Sent || seen[0] == n_there), "{stage:?}");
    }
}
