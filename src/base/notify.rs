//! The service manager's ear: systemd's notify protocol, datagrams of `KEY=VALUE` lines.
//!
//! ```text
//! NOTIFY_SOCKET=/run/systemd/notify, or @name in the abstract namespace
//! READY=1  STATUS=text  WATCHDOG=1  RELOADING=1  STOPPING=1  EXTEND_TIMEOUT_USEC=n
//! WATCHDOG_USEC, WATCHDOG_PID: a WATCHDOG=1 is expected at least that often
//! ```
//!
//! Nothing here waits: a message that the manager's queue has no room for is lost, and the next
//! one says the same.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::env::Env;
use super::limits::NOTIFY_STATUS_BYTES_MAX;

/// A line to the service manager.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    address: SocketAddr,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// The manager that started the program of this environment with the number `pid`, if one did
    /// and wants to hear of it.
    ///
    /// # Errors
    /// If its socket has no name that can be one.
    pub fn from_env(env: &Env, pid: u32) -> io::Result<Option<Notifier>> {
        let Some(name) = env.get("NOTIFY_SOCKET") else { return Ok(None) };
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        let number = |name: &str| env.get(name)?.to_str()?.parse::<u64>().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|own| own == u64::from(pid));
        let watchdog = number("WATCHDOG_USEC").filter(|us| *us > 0 && is_ours);
        Ok(Some(Notifier { socket, address, watchdog: watchdog.map(Duration::from_micros) }))
    }

    /// How long the manager waits for a sign of life; `None` if it does not.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The service can be used.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// The service lives and its work goes on.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// The service reads its configuration anew; [`Notifier::ready`] says that it is done.
    pub fn reloading(&self) {
        self.send("RELOADING=1");
    }

    /// The service ends by itself.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// The start takes up to `more` from now on.
    pub fn extend(&self, more: Duration) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", more.as_micros()));
    }

    /// What it does, in a line for people; whether that was heard.
    pub fn status(&self, text: &str) -> bool {
        let line: String = text.chars().filter(|c| !c.is_control()).collect();
        let end = line.floor_char_boundary(NOTIFY_STATUS_BYTES_MAX);
        self.send(&format!("STATUS={}", &line[..end]))
    }

    fn send(&self, message: &str) -> bool {
        self.socket.send_to_addr(message.as_bytes(), &self.address).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 1024];
        let n = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..n].to_vec()).unwrap()
    }

    fn notifier(pairs: &[(&str, &str)]) -> Option<Notifier> {
        Notifier::from_env(&pairs.iter().copied().collect(), 7).unwrap()
    }

    #[test]
    fn the_manager_hears_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("jetforge-notify-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&abstract_name).unwrap();
        let path = path.display().to_string();
        for (socket, name) in [(by_path, path), (by_name, format!("@{name}"))] {
            let notifier = notifier(&[("NOTIFY_SOCKET", &name)]).unwrap();
            notifier.ready();
            notifier.status("one\nREADY=1 two");
            notifier.extend(Duration::from_secs(3));
            assert_eq!(heard(&socket), "READY=1");
            assert_eq!(heard(&socket), "STATUS=oneREADY=1 two", "a text cannot say more");
            assert_eq!(heard(&socket), "EXTEND_TIMEOUT_USEC=3000000");
        }
    }

    #[test]
    fn a_watchdog_is_for_the_process_that_it_names() {
        let socket = ("NOTIFY_SOCKET", "/nowhere/notify");
        assert!(notifier(&[]).is_none());
        let watchdog =
            |pairs: &[(&str, &str)]| notifier(&[&[socket], pairs].concat()).unwrap().watchdog();
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog(&[]), None);
        assert_eq!(watchdog(&[("WATCHDOG_USEC", "1000000")]), second);
        assert_eq!(watchdog(&[("WATCHDOG_USEC", "1000000"), ("WATCHDOG_PID", "7")]), second);
        assert_eq!(watchdog(&[("WATCHDOG_USEC", "1000000"), ("WATCHDOG_PID", "8")]), None);
        assert_eq!(watchdog(&[("WATCHDOG_USEC", "soon")]), None);
        notifier(&[socket]).unwrap().ready();
    }
}
