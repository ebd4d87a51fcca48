//! `jetforge monitor` as a person sees it: on a terminal that knows the sequences of a VT100 and no
//! others, that changes its size, that does not know it, and on one without sequences.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustix::termios::{LocalModes, Termios, tcgetattr};

use crate::serve::Process;
use crate::support::skip::skip;
use crate::terminal::{Session, resize};

/// A screen of text, as a VT100 makes it of what it is sent.
struct Vt {
    n_column: usize,
    n_row: usize,
    rows: Vec<Vec<char>>,
    at: (usize, usize),
    wraps: bool,
    /// Rows that moved up and out since the cursor was sent home.
    n_scrolled: usize,
    /// The start of a sequence whose rest is still to come.
    half: String,
}

impl Vt {
    fn new((n_column, n_row): (u16, u16)) -> Vt {
        let (n_column, n_row) = (usize::from(n_column), usize::from(n_row));
        let rows = vec![Vec::new(); n_row];
        Vt { n_column, n_row, rows, at: (0, 0), wraps: true, n_scrolled: 0, half: String::new() }
    }

    /// Takes what was sent; after each whole frame `look` sees the screen.
    fn take(&mut self, text: &str, mut look: impl FnMut(&Vt)) {
        let text = std::mem::take(&mut self.half) + text;
        let mut left = text.as_str();
        while let Some(first) = left.chars().next() {
            if first != '\x1b' {
                self.put(first);
                left = &left[first.len_utf8()..];
                continue;
            }
            let Some(end) = left.find(|c: char| c.is_ascii_alphabetic()) else {
                left.clone_into(&mut self.half);
                return;
            };
            let (sequence, rest) = left.split_at(end + 1);
            let (row, column) = self.at;
            match sequence {
                "\x1b[H" => (self.at, self.n_scrolled) = ((0, 0), 0),
                "\x1b[K" => self.rows[row].truncate(column),
                "\x1b[J" => {
                    self.rows[row].truncate(column);
                    self.rows[row + 1..].iter_mut().for_each(Vec::clear);
                }
                "\x1b[?7l" => self.wraps = false,
                "\x1b[?7h" => {
                    self.wraps = true;
                    look(self);
                }
                other => panic!("{other:?} is not among what it may use"),
            }
            left = rest;
        }
    }

    fn put(&mut self, c: char) {
        match c {
            '\r' => self.at.1 = 0,
            '\n' if self.at.0 + 1 < self.n_row => self.at.0 += 1,
            '\n' => {
                self.rows.remove(0);
                self.rows.push(Vec::new());
                self.n_scrolled += 1;
            }
            c => {
                if self.at.1 == self.n_column && self.wraps {
                    self.put('\r');
                    self.put('\n');
                }
                let column = self.at.1.min(self.n_column - 1);
                let row = &mut self.rows[self.at.0];
                row.resize(row.len().max(column + 1), ' ');
                row[column] = c;
                self.at.1 = column + 1;
            }
        }
    }

    /// Its rows, without those that are empty at its end.
    fn text(&self) -> String {
        let rows = self.rows.iter().map(|row| row.iter().collect::<String>());
        rows.collect::<Vec<_>>().join("\n").trim_end().to_owned()
    }
}

/// Waits for a frame that is as it should be.
fn until_frame(session: &mut Session, vt: &mut Vt, what: &str, is_so: impl Fn(&Vt) -> bool) {
    let (start, mut is_seen) = (Instant::now(), false);
    while !is_seen {
        assert!(start.elapsed() < Duration::from_secs(120), "{what}: {:?}", vt.text());
        let text = session.read().unwrap_or_else(|| panic!("it left before {what}"));
        vt.take(&text, |vt| is_seen |= is_so(vt));
    }
}

/// The program on its terminal; with `setsid` the terminal is its own, and sends it signals.
fn monitor(home: &Path, more: &[&str], term: &str, size: (u16, u16), is_own: bool) -> Session {
    let program = assert_cmd::cargo::cargo_bin!("jetforge");
    let mut command = match is_own {
        true => Command::new("setsid"),
        false => Command::new(program),
    };
    if is_own {
        command.arg("--ctty").arg(program);
    }
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home);
    command.env("JETFORGE_ROLE", "person").env("TERM", term);
    // A machine without sensors, so that the screen is known.
    let root = home.display().to_string();
    command.args(["monitor", "--root", &root]).args(more);
    Session::of(command, size)
}

fn has_setsid(test: &str) -> bool {
    let has = Command::new("setsid").arg("--version").output();
    let has = has.is_ok_and(|output| output.status.success());
    if !has {
        skip(test, "there is no setsid");
    }
    has
}

/// Whether its terminal takes keys as it did before.
fn is_as_before(session: &Session) -> bool {
    let modes = |of: &Termios| (of.local_modes, of.input_modes, of.output_modes);
    modes(&tcgetattr(&session.keys).unwrap()) == modes(&session.before)
}

/// The program's exit code, and all that it still wrote.
fn end(session: &mut Session) -> (Option<i32>, String) {
    let code = session.child.wait().unwrap().code();
    let mut rest = String::new();
    while let Some(text) = session.read() {
        rest += &text;
    }
    (code, rest)
}

#[test]
fn a_monitor_is_drawn_again_through_resizes_and_a_service_that_goes_and_comes() {
    if !has_setsid("monitor") {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let service = Process::start(home.path(), &[]);
    let url = service.address.to_string();
    let port = service.address.port().to_string();
    let mut session = monitor(home.path(), &["--url", &url], "vt100", (80, 24), true);
    let mut vt = Vt::new((80, 24));
    let served = format!("service      {url}: default");
    until_frame(&mut session, &mut vt, "a service", |vt| vt.text().contains(&served));
    assert!(vt.text().starts_with("board  "), "{}", vt.text());
    assert!(vt.text().contains("queue        0 run, 0 wait"), "{}", vt.text());
    let unseen = LocalModes::ECHO | LocalModes::ICANON;
    let modes = tcgetattr(&session.keys).unwrap().local_modes;
    assert!(!modes.intersects(unseen), "keys are not shown");
    until_frame(&mut session, &mut vt, "a speed", |vt| vt.text().contains("0.0 tokens a second"));

    for size in [(30, 3), (20, 1), (132, 43), (80, 24)] {
        resize(&session.keys, size);
        let mut vt = Vt::new(size);
        let (n_column, n_row) = (usize::from(size.0), usize::from(size.1));
        until_frame(&mut session, &mut vt, "a frame that fits", |vt| {
            // What was drawn for the size before runs over the end, or leaves more than it may.
            let fits = |row: &Vec<char>| row.len() < n_column;
            let (text, is_cut) = (vt.text(), vt.text().lines().count() == n_row);
            let is_all = is_cut || text.contains("\nthrottled");
            vt.n_scrolled == 0 && vt.rows.iter().all(fits) && text.starts_with("board  ") && is_all
        });
    }

    let mut vt = Vt::new((80, 24));
    service.kill();
    until_frame(&mut session, &mut vt, "no service", |vt| {
        vt.text().contains("service      no service answers at")
    });
    assert!(!vt.text().contains("queue"), "{}", vt.text());
    let service = Process::start_verb(home.path(), "serve", &["--port", &port]);
    until_frame(&mut session, &mut vt, "the service again", |vt| vt.text().contains(&served));
    session.types("xq");
    assert_eq!(end(&mut session).0, Some(0));
    drop(service);
}

#[test]
fn ctrl_c_and_signals_leave_the_terminal_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let has_setsid = has_setsid("monitor-keys");
    let nobody = ["--url", "127.0.0.1:1"];
    // On a console that is nobody's own, Ctrl-C is a byte and no signal.
    for (is_own, signal) in [
        (true, None),
        (false, None),
        (false, Some(Signal::INT)),
        (false, Some(Signal::TERM)),
        (false, Some(Signal::HUP)),
    ] {
        if is_own && !has_setsid {
            continue;
        }
        let mut session = monitor(home.path(), &nobody, "vt220", (80, 24), is_own);
        let mut vt = Vt::new((80, 24));
        until_frame(&mut session, &mut vt, "a frame", |vt| vt.text().contains("no service"));
        match signal {
            None => session.types("\x03"),
            Some(signal) => session.gets(signal),
        }
        let (code, rest) = end(&mut session);
        assert_eq!(code, Some(130), "{is_own} {signal:?}");
        // A terminal of its own is reset by the system as it goes, whatever it was left as.
        if !is_own {
            vt.take(&rest, |_| {});
            assert!(vt.wraps && vt.at.1 == 0, "the next line is the shell's: {signal:?}");
            assert!(is_as_before(&session), "{signal:?}");
        }
    }
}

#[test]
fn a_console_that_does_not_know_its_size_is_one_of_80_by_24() {
    let home = tempfile::tempdir().unwrap();
    let nobody = ["--url", "127.0.0.1:1"];
    let mut session = monitor(home.path(), &nobody, "vt100", (0, 0), false);
    let mut vt = Vt::new((80, 24));
    until_frame(&mut session, &mut vt, "a frame", |vt| vt.text().contains("no service"));
    assert_eq!((vt.n_scrolled, vt.rows[1].len()), (0, 79), "{}", vt.text());
    session.types("q");
    assert_eq!(end(&mut session).0, Some(0));
    assert!(is_as_before(&session));
}

#[test]
fn a_terminal_without_sequences_gets_none() {
    let home = tempfile::tempdir().unwrap();
    for term in ["dumb", ""] {
        let nobody = ["--url", "127.0.0.1:1"];
        let mut session = monitor(home.path(), &nobody, term, (80, 24), false);
        let mut said = String::new();
        while said.matches("no service answers").count() < 2 {
            said += &session.read().expect("it goes on");
        }
        session.types("q");
        let (code, rest) = end(&mut session);
        said += &rest;
        assert_eq!(code, Some(0));
        assert!(said.starts_with("board  ") && !said.contains('\x1b'), "{said:?}");
    }
}

#[test]
fn a_service_that_says_nothing_keeps_nobody_from_leaving() {
    let home = tempfile::tempdir().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = silent.local_addr().unwrap().to_string();
    let mut session = monitor(home.path(), &["--url", &url], "vt100", (80, 24), false);
    let held = silent.accept().unwrap();
    let start = Instant::now();
    session.types("q");
    assert_eq!(end(&mut session).0, Some(0));
    assert!(start.elapsed() < Duration::from_secs(30), "it did not wait for an answer");
    drop(held);
}
