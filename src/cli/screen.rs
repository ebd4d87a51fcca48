//! A terminal that is drawn on anew and anew: its size, its keys, and as it was when we leave.
//!
//! ```text
//! a frame   home, each row cut to the width and cleared to its end, then all that is below
//! keys      one by one and unseen; Ctrl-C is a key too, for a console that nobody controls sends
//!           no signal
//! ```
//!
//! These are sequences of a VT100, so they work over ssh and on a serial console, which often does
//! not know its own size and then counts as 80 by 24. A terminal without them, or a file, gets one
//! frame below the other.

use std::io::{IsTerminal, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use tokio::signal::unix::{SignalKind, signal};

/// Columns and rows of a terminal that does not say how many it has.
const USUAL: (usize, usize) = (80, 24);
/// Events that wait for whoever draws.
const WAITING_MAX: usize = 16;
/// What Ctrl-C sends.
const CTRL_C: u8 = 3;
/// Whoever draws may wait for a terminal that takes nothing; it has so long to leave.
const GRACE: Duration = Duration::from_secs(2);

/// What happens to a screen.
#[derive(Debug)]
pub enum Event {
    /// There is something new to show: lines of text.
    Text(String),
    /// It has another size.
    Resized,
    /// Somebody wants to leave.
    Quit,
    /// Ctrl-C, or a signal.
    Stop,
}

/// See the module. The terminal is as it was before when this is dropped.
pub struct Screen {
    events: Receiver<Event>,
    tell: SyncSender<Event>,
    /// Of stdin, if that and stdout are a terminal.
    before: Option<Termios>,
    is_drawn: bool,
}

impl Screen {
    /// Takes the terminal over. `kind` is what it calls itself, by `TERM`.
    ///
    /// # Errors
    /// If the system gives no thread, or the terminal cannot be set.
    pub fn take(kind: &str) -> std::io::Result<Screen> {
        let (tell, events) = sync_channel(WAITING_MAX);
        let stdin = std::io::stdin();
        // Whoever writes to a file may stand in the background, where no terminal is theirs to set.
        let has_keys = stdin.is_terminal() && std::io::stdout().is_terminal();
        let before = if has_keys { Some(tcgetattr(&stdin)?) } else { None };
        let is_drawn = std::io::stdout().is_terminal() && !matches!(kind, "" | "dumb");
        let screen = Screen { events, tell, before, is_drawn };
        hear_signals(screen.tell.clone(), screen.before.clone())?;
        if let Some(before) = &screen.before {
            let mut keys = before.clone();
            let lines = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
            keys.local_modes.remove(lines | LocalModes::IEXTEN);
            keys.special_codes[SpecialCodeIndex::VMIN] = 1;
            keys.special_codes[SpecialCodeIndex::VTIME] = 0;
            tcsetattr(&stdin, OptionalActions::Now, &keys)?;
            let (tell, before) = (screen.tell.clone(), before.clone());
            let thread = std::thread::Builder::new().name("keys".to_owned());
            thread.spawn(move || hear_keys(&tell, &before))?;
        }
        Ok(screen)
    }

    /// Where text to show is sent.
    pub fn texts(&self) -> SyncSender<Event> {
        self.tell.clone()
    }

    /// Shows what is sent until somebody leaves; whether that was by Ctrl-C or a signal.
    ///
    /// # Errors
    /// If the terminal is gone.
    pub fn show(&self) -> std::io::Result<bool> {
        let mut text = None;
        while let Ok(event) = self.events.recv() {
            let mut has_new = false;
            // A slow terminal is shown the newest, and leaving waits for no frame.
            for event in std::iter::once(event).chain(self.events.try_iter()) {
                match event {
                    Event::Text(new) => (text, has_new) = (Some(new), true),
                    Event::Resized => has_new |= self.is_drawn,
                    Event::Quit => return Ok(false),
                    Event::Stop => return Ok(true),
                }
            }
            if let Some(text) = text.as_ref().filter(|_| has_new) {
                self.draw(text)?;
            }
        }
        Ok(true)
    }

    fn draw(&self, text: &str) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        match self.is_drawn {
            true => out.write_all(frame(text, size()).as_bytes())?,
            false => writeln!(out, "{text}")?,
        }
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.is_drawn {
            let mut out = std::io::stdout().lock();
            let _ = out.write_all(b"\r\n").and_then(|()| out.flush());
        }
        restore(self.before.as_ref());
    }
}

fn restore(before: Option<&Termios>) {
    if let Some(before) = before {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
    }
}

/// Columns and rows.
fn size() -> (usize, usize) {
    let told = tcgetwinsize(std::io::stdout());
    let told = told.map_or((0, 0), |size| (usize::from(size.ws_col), usize::from(size.ws_row)));
    if told.0 == 0 || told.1 == 0 { USUAL } else { told }
}

/// Lines as bytes for a terminal of this many columns and rows. The last column stays free: a
/// terminal that stands behind it clears the one before.
fn frame(text: &str, (n_column, n_row): (usize, usize)) -> String {
    let cut = |line: &str| line.chars().take(n_column.saturating_sub(1)).collect::<String>();
    let rows: Vec<String> = text.lines().take(n_row).map(cut).collect();
    // Nothing wraps while it is drawn, also if the terminal has just become smaller, and nothing
    // ends the last row: it would move all of them up.
    format!("\x1b[?7l\x1b[H{}\x1b[J\x1b[?7h", rows.join("\x1b[K\r\n"))
}

fn hear_keys(tell: &SyncSender<Event>, before: &Termios) {
    for key in std::io::stdin().lock().bytes().map_while(Result::ok) {
        let (event, code) = match key {
            b'q' => (Event::Quit, 0),
            CTRL_C => (Event::Stop, super::exit::INTERRUPTED),
            _ => continue,
        };
        let _ = tell.try_send(event);
        // Whoever draws waits for a terminal that was told to stop, by Ctrl-S.
        std::thread::sleep(GRACE);
        restore(Some(before));
        std::process::exit(i32::from(code));
    }
}

fn hear_signals(tell: SyncSender<Event>, before: Option<Termios>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut resized = signal(SignalKind::window_change())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    drop(guard);
    let hear = async move {
        loop {
            tokio::select! {
                _ = resized.recv() => drop(tell.try_send(Event::Resized)),
                _ = interrupted.recv() => break,
                _ = terminated.recv() => break,
                _ = hung_up.recv() => break,
            }
        }
        let _ = tell.try_send(Event::Stop);
        tokio::time::sleep(GRACE).await;
        restore(before.as_ref());
        std::process::exit(i32::from(super::exit::INTERRUPTED));
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || runtime.block_on(hear)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_cut_to_the_terminal_and_moves_nothing_up() {
        let (text, between) = ("one\ntwo is long\nthree\n", "\x1b[K\r\n");
        let framed = |rows: &[&str]| format!("\x1b[?7l\x1b[H{}\x1b[J\x1b[?7h", rows.join(between));
        assert_eq!(frame(text, (80, 24)), framed(&["one", "two is long", "three"]));
        assert_eq!(frame(text, (5, 2)), framed(&["one", "two "]));
    }
}
