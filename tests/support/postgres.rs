//! A PostgreSQL server for a test: made in a folder of its own, reached by a socket there, killed
//! with all its processes when it is dropped.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;

use rustix::process::{Pid, Signal, kill_process};

use super::skip::skip;

/// See the module.
pub struct Postgres {
    bin: PathBuf,
    dir: tempfile::TempDir,
    child: Option<Child>,
}

/// Where Debian's packages put a server's programs; the newest that is there.
fn bin() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let bins = versions.flatten().map(|version| version.path().join("bin"));
    bins.filter(|bin| bin.join("initdb").exists() && bin.join("postgres").exists()).max()
}

/// Whoever the server runs as: not root, which it refuses.
fn command(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
    command
}

impl Postgres {
    /// A server that is ready. Where it cannot be had the test `postgres` is skipped.
    pub fn start() -> Option<Postgres> {
        let Some(bin) = bin() else {
            skip("postgres", "there is no server in /usr/lib/postgresql");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        if rustix::process::geteuid().is_root() {
            // Debian's package makes the user, and `postgres` may not own what root made.
            let own = Command::new("chown").arg("postgres:").arg(dir.path()).output().unwrap();
            if !own.status.success() || command(Path::new("true")).status().is_err() {
                skip("postgres", "root cannot start a server as the user postgres");
                return None;
            }
        }
        let open = PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let made = command(&bin.join("initdb"))
            .args(["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8"])
            .args(["--locale=C", "--no-instructions", "--pgdata"])
            .arg(dir.path().join("data"))
            .current_dir("/")
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mut server = Postgres { bin, dir, child: None };
        server.revive();
        Some(server)
    }

    /// Starts it again; it takes connections when this returns.
    pub fn revive(&mut self) {
        let mut child = command(&self.bin.join("postgres"))
            .arg("-D")
            .arg(self.dir.path().join("data"))
            .arg("-k")
            .arg(self.dir.path())
            .args(["-c", "listen_addresses=", "-c", "max_connections=60"])
            .current_dir("/")
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (tell, told) = sync_channel(1);
        // It is read to its end, so that the server never waits for its reader.
        std::thread::spawn(move || {
            let mut said = String::new();
            for line in stderr.lines().map_while(Result::ok) {
                if line.contains("ready to accept connections") {
                    let _ = tell.try_send(Ok(()));
                }
                said = said + &line + "\n";
            }
            let _ = tell.try_send(Err(said));
        });
        self.child = Some(child);
        told.recv().unwrap().unwrap_or_else(|said| panic!("it does not start: {said}"));
    }

    /// Stops the server and each process of it, or lets them go on: its system still takes
    /// connections and bytes for it.
    pub fn stop(&self, is_stopped: bool) {
        let Some(child) = &self.child else { return };
        let signal = if is_stopped { Signal::STOP } else { Signal::CONT };
        let own = child.id() as i32;
        // The first one first: it makes the others.
        kill_process(Pid::from_raw(own).unwrap(), signal).unwrap();
        for pid in children(own) {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
        }
    }

    /// Kills the server and each process of it with -9.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let children = children(child.id() as i32);
        child.kill().unwrap();
        child.wait().unwrap();
        for pid in children {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
            // A server does not start while one of the old processes is left.
            while Path::new(&format!("/proc/{pid}/stat")).exists() && is_alive(pid) {
                std::thread::yield_now();
            }
        }
    }

    /// The address of a database that is made now.
    pub fn database(&self, name: &str) -> String {
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        format!("postgres://postgres@/{name}?host={}", self.dir.path().display())
    }

    /// Runs a statement; what it gives, a row a line.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let mut psql = Command::new(self.bin.join("psql"));
        psql.arg("-h").arg(self.dir.path()).args(["-U", "postgres", "-d", database]);
        let done = psql.args(["-qtAc", sql]).output().unwrap();
        assert!(done.status.success(), "{sql}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }
}

/// The processes that a process made.
fn children(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    children.unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Whether a process has not ended: one that nobody has waited for yet has.
fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| state != 'Z')
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}
