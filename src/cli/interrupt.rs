//! Ctrl-C: the first stops what is going on, the second without an answer ends the program.
//!
//! A thread waits for the signal, because a handler itself may do almost nothing. Before
//! [`Interrupt::install`] Ctrl-C ends the program as usual, so loading a model can be stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::exit;
use super::terminal;

/// Whether Ctrl-C was pressed and nobody has answered yet.
#[derive(Clone, Default)]
pub struct Interrupt {
    is_pending: Arc<AtomicBool>,
    /// While set, the first Ctrl-C says how to leave.
    is_idle: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes Ctrl-C over from now on.
    ///
    /// # Errors
    /// When the system gives no thread or signal.
    pub fn install() -> std::io::Result<Interrupt> {
        let interrupt = Interrupt::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Registered here and not in the thread, so that no Ctrl-C falls between.
        let mut signal = {
            let _guard = runtime.enter();
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?
        };
        let state = interrupt.clone();
        std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
            while runtime.block_on(signal.recv()).is_some() {
                state.pressed();
            }
        })?;
        Ok(interrupt)
    }

    fn pressed(&self) {
        if self.is_pending.swap(true, Ordering::SeqCst) {
            terminal::note("");
            std::process::exit(i32::from(exit::INTERRUPTED));
        }
        if self.is_idle.load(Ordering::SeqCst) {
            terminal::note("\nCtrl-C again or /exit leaves");
        }
    }

    /// Whether it was pressed.
    pub fn is_pending(&self) -> bool {
        self.is_pending.load(Ordering::SeqCst)
    }

    /// Marks the press as answered and says whether there was one.
    pub fn take(&self) -> bool {
        self.is_pending.swap(false, Ordering::SeqCst)
    }

    /// Says whether the program waits for a line.
    pub fn set_idle(&self, is_idle: bool) {
        self.is_idle.store(is_idle, Ordering::SeqCst);
    }
}
