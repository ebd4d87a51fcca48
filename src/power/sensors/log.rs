//! The kernel's log, in which the Nano says that its supply sags.
//!
//! `dev/kmsg` gives one record a read, from the oldest that is kept, and says `EAGAIN` at the end
//! (the kernel's `ABI/testing/dev-kmsg`). A record that was overwritten before it was read is
//! `EPIPE`, and the next read goes on behind it. The file stays open, so each record is looked at
//! once. In tests it is an ordinary file, which has many lines a read.
//!
//! Reading it takes no rights while `kernel.dmesg_restrict` is 0, and `CAP_SYSLOG` else; a unit's
//! `DevicePolicy=` must let it through either way.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;

use crate::base::limits::POWER_LOG_RECORDS_MAX;
use crate::power::sysfs::{Reason, Sysfs};

/// What the kernel says when the supply's voltage sags or its current is too high.
const ALARM: &str = "soctherm: OC ALARM";
/// A record is shorter.
const RECORD_BYTES: usize = 8 << 10;

/// The log, and how often it said so.
#[derive(Debug)]
pub struct KernelLog {
    file: Result<File, Reason>,
    n_over_current: u64,
    /// What has been read of a line that has no end yet.
    rest: String,
}

impl KernelLog {
    pub fn open(sysfs: &Sysfs) -> KernelLog {
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
        let file = OpenOptions::new().read(true).custom_flags(flags).open(sysfs.path("dev/kmsg"));
        let file = file.map_err(|error| match error.kind() {
            ErrorKind::NotFound => "no log of the kernel".to_owned(),
            ErrorKind::PermissionDenied => {
                "the kernel's log is for root alone, see kernel.dmesg_restrict".to_owned()
            }
            kind => kind.to_string(),
        });
        KernelLog { file, n_over_current: 0, rest: String::new() }
    }

    /// Alarms since the kernel's start, as far as its log reaches back.
    pub fn n_over_current(&mut self) -> Result<u64, Reason> {
        let file = self.file.as_mut().map_err(|reason| reason.clone())?;
        let mut buffer = vec![0; RECORD_BYTES];
        for _ in 0..POWER_LOG_RECORDS_MAX {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => {
                    self.rest.push_str(&String::from_utf8_lossy(&buffer[..n]));
                    let (whole, rest) = match self.rest.rfind('\n') {
                        Some(end) => self.rest.split_at(end + 1),
                        None => ("", self.rest.as_str()),
                    };
                    let n = whole.lines().filter(|line| line.contains(ALARM)).count();
                    self.n_over_current += n as u64;
                    // A line without an end is not waited for beyond the size of a record.
                    self.rest = if rest.len() > RECORD_BYTES { String::new() } else { rest.into() };
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => break,
            }
        }
        Ok(self.n_over_current)
    }
}
