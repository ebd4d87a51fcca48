//! The line to a server: each answer is waited for, and none for ever.
//!
//! ```text
//! question -> the driver, on a small runtime that is this line's alone -> answer
//!                                                                      -> silence: it is lost
//! ```
//!
//! A server that is stopped takes connections and bytes all the same: its system does that, and
//! nothing below the protocol tells the two apart. So each answer has a time of its own. After one
//! that did not come nobody knows what the server makes of the question, so nothing more is asked
//! on that line.
//!
//! The driver is async, and this is where that ends: above it a question is a call that waits.

use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tokio_postgres::{Client, Config, Error, NoTls};

/// Why there is no answer.
pub enum Fault {
    /// The server or the driver says so.
    Said(Error),
    /// Nobody said anything for so many milliseconds.
    Silent(u64),
    /// The system gives nothing to wait with.
    System(std::io::Error),
}

/// See the module. It may not end on a thread of another runtime.
pub struct Line {
    runtime: Runtime,
    client: Client,
    is_lost: bool,
}

impl Line {
    /// A line to the server of `config`, if that has taken it after `ms` milliseconds.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn open(config: &Config, ms: u64) -> Result<Line, Fault> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Fault::System)?;
        let time = Duration::from_millis(ms);
        let fault = match runtime.block_on(async { timeout(time, config.connect(NoTls)).await }) {
            Ok(Ok((client, connection))) => {
                // How it ends shows with the next question.
                runtime.spawn(connection);
                return Ok(Line { runtime, client, is_lost: false });
            }
            Ok(Err(error)) => Fault::Said(error),
            Err(_) => Fault::Silent(ms),
        };
        // A name that is still looked up has a thread, for which nobody waits.
        runtime.shutdown_background();
        Err(fault)
    }

    /// The answer to a question, if it comes within `ms` milliseconds.
    ///
    /// # Errors
    /// See [`Fault`].
    pub fn ask<T>(
        &mut self,
        ms: u64,
        question: impl AsyncFnOnce(&Client) -> Result<T, Error>,
    ) -> Result<T, Fault> {
        if self.is_lost {
            return Err(Fault::Silent(ms));
        }
        let time = Duration::from_millis(ms);
        let answer = async { timeout(time, question(&self.client)).await };
        match self.runtime.block_on(answer) {
            Ok(answer) => answer.map_err(Fault::Said),
            Err(_) => {
                self.is_lost = true;
                Err(Fault::Silent(ms))
            }
        }
    }

    /// Whether no more can be asked.
    pub fn is_closed(&self) -> bool {
        self.is_lost || self.client.is_closed()
    }
}
