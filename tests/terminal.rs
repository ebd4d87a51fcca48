//! Chat as a person sees it: over a pseudo terminal, with many lines and Ctrl-C.
//!
//! The key itself would need a controlling terminal; what it does is send SIGINT, so that is sent.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::cli::jetforge;

/// Longest wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(120);

/// A program on a terminal, and what it wrote there since it was last looked at.
pub struct Session {
    pub child: Child,
    /// The end of the terminal that people have.
    pub keys: File,
    /// How the terminal took keys before the program had it.
    pub before: Termios,
    screen: Receiver<Vec<u8>>,
    unread: String,
}

impl Session {
    fn start(home: &std::path::Path, args: &[&str]) -> Session {
        let mut command = jetforge(home);
        command.env("TERM", "xterm").args(args);
        Session::of(command, (80, 24))
    }

    /// A command on a terminal of so many columns and rows.
    pub fn of(mut command: Command, size: (u16, u16)) -> Session {
        let keys = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo terminal");
        grantpt(&keys).and_then(|()| unlockpt(&keys)).expect("its other end");
        let name = ptsname(&keys, Vec::new()).expect("its name");
        let open = || -> OwnedFd {
            rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("opens")
        };
        resize(&keys, size);
        let before = tcgetattr(&keys).expect("it tells how it takes keys");
        let child = command.stdin(open()).stdout(open()).stderr(open()).spawn();
        // The command holds the other end as well; without it the end of the child ends the output.
        drop(command);
        let keys = File::from(keys);
        let mut output = keys.try_clone().expect("a second handle");
        let (send, screen) = channel();
        std::thread::spawn(move || {
            let mut buf = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buf) {
                if send.send(buf[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let child = child.expect("the program starts");
        Session { child, keys, before, screen, unread: String::new() }
    }

    pub fn types(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).expect("the terminal takes keys");
    }

    fn interrupts(&self) {
        self.gets(Signal::INT);
    }

    /// Sends it a signal.
    pub fn gets(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("a signal");
    }

    /// What it wrote since the last look, once there is something; `None` when it is gone.
    pub fn read(&mut self) -> Option<String> {
        if self.unread.is_empty() {
            match self.screen.recv_timeout(PATIENCE) {
                Ok(bytes) => self.unread.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => panic!("it writes nothing"),
            }
        }
        Some(std::mem::take(&mut self.unread))
    }

    /// Waits for `text` on the screen and gives what stood before it.
    fn sees(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.unread.find(text) {
                let rest = self.unread.split_off(at + text.len());
                return std::mem::replace(&mut self.unread, rest);
            }
            match self.screen.recv_timeout(PATIENCE) {
                Ok(bytes) => self.unread.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("no {text:?} in {:?}", self.unread),
            }
        }
    }
}

/// Gives a terminal so many columns and rows; 0 of both if it does not know.
pub fn resize(terminal: impl AsFd, (ws_col, ws_row): (u16, u16)) {
    let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("it takes a size");
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn chat_over_a_terminal() {
    let home = tempfile::tempdir().expect("a temporary folder");
    // An answer that does not end by itself before it is stopped.
    let mut chat = Session::start(home.path(), &["chat", "--ignore-eos"]);
    chat.sees("/help helps");
    chat.sees("> ");
    chat.types("write a quick sort example\\\n");
    chat.sees("| ");
    chat.types("and print the sorted result\n");
    let answer = chat.sees("quicksort(");
    assert!(answer.contains("```python"), "{answer:?}");
    chat.interrupts();
    chat.sees("(stopped)");
    chat.sees("> ");

    // At the prompt Ctrl-C says how to leave, and the conversation goes on.
    chat.interrupts();
    chat.sees("Ctrl-C again or /exit leaves");
    chat.types("/stats\n");
    chat.sees("(figures are on)");
    chat.types("\"\"\"\nexplain\n");
    chat.sees("| ");
    chat.types("this program\n\"\"\"\n");
    chat.sees("\n");
    chat.sees(")"); // some of the answer
    chat.interrupts();
    let figures = chat.sees("ended by canceled");
    assert!(figures.contains("prefill") && !figures.contains("load "), "{figures:?}");
    chat.sees("> ");
    chat.types("/exit\n");
    assert!(chat.child.wait().expect("it ends").success());
}

#[test]
fn ctrl_c_twice_at_the_prompt_leaves() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let mut chat = Session::start(home.path(), &["chat"]);
    chat.sees("> ");
    chat.interrupts();
    chat.sees("leaves");
    chat.interrupts();
    assert_eq!(chat.child.wait().expect("it ends").code(), Some(130));
}

#[test]
fn a_person_who_gives_no_prompt_is_told_so() {
    let home = tempfile::tempdir().expect("a temporary folder");
    let mut generate = Session::start(home.path(), &["generate"]);
    let told = generate.sees("give a prompt, --file FILE, or a text on stdin");
    assert!(told.contains("\u{1b}["), "colour on a terminal: {told:?}");
    assert_eq!(generate.child.wait().expect("it ends").code(), Some(2));
}
