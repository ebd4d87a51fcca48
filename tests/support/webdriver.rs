//! A headless Chromium, driven over W3C WebDriver by a `chromedriver` of its own.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::http::{request, send};

/// Under this key an element's name travels.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Longest wait for the end of a session.
const END: Duration = Duration::from_secs(10);

/// A browser with an empty profile that talks to nobody by itself; ends when it is dropped.
pub struct Browser {
    driver: Child,
    /// Open as long as the driver, which must not lose the reader of what it says.
    _said: BufReader<ChildStdout>,
    address: SocketAddr,
    session: String,
    /// Chromium's process.
    pid: Option<Pid>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts one, or says what is missing.
    ///
    /// # Panics
    ///
    /// If what is there does not work.
    pub fn start() -> Result<Browser, String> {
        let named = std::env::var_os("JETFORGE_TEST_CHROMEDRIVER");
        let program = named.unwrap_or_else(|| OsString::from("chromedriver"));
        let profile = tempfile::tempdir().unwrap();
        let mut driver = Command::new(&program)
            .arg("--port=0")
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| {
                format!("{}: {e} (JETFORGE_TEST_CHROMEDRIVER names it)", program.display())
            })?;
        let mut said = BufReader::new(driver.stdout.take().unwrap());
        let port = port(&mut said).expect("chromedriver names its port");
        let mut browser = Browser {
            driver,
            _said: said,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            session: String::new(),
            pid: None,
            _profile: profile,
        };
        let profile = browser._profile.path().display().to_string();
        match browser.ask("POST", "/session", &capabilities(&profile)) {
            Ok(answer) => {
                browser.session = answer["sessionId"].as_str().unwrap().to_owned();
                let pid = answer["capabilities"]["goog:processID"].as_i64();
                browser.pid = pid.and_then(|pid| Pid::from_raw(pid as i32));
            }
            Err(e) if e.contains("cannot find Chrome binary") => return Err(e),
            Err(e) => panic!("no session: {e}"),
        }
        Ok(browser)
    }

    /// The value of an answer, or its error.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let mut answer = send(self.address, method, path, &[], &body).json();
        match answer["value"]["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", answer["value"]["message"])),
            None => Ok(answer["value"].take()),
        }
    }

    /// As `ask`, of the session, of which nothing is asked that can fail.
    fn command(&self, method: &str, path: &str, body: Value) -> Value {
        let path = format!("/session/{}/{path}", self.session);
        self.ask(method, &path, &body).unwrap_or_else(|e| panic!("{path} {body}: {e}"))
    }

    /// Opens a page, and waits until it is loaded.
    pub fn open(&self, url: &str) {
        self.command("POST", "url", json!({"url": url}));
    }

    fn element(&self, css: &str) -> String {
        let found = self.command("POST", "element", json!({"using": "css selector", "value": css}));
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    /// A click where a person can click: on what is seen and not covered.
    pub fn click(&self, css: &str) {
        self.command("POST", &format!("element/{}/click", self.element(css)), json!({}));
    }

    /// Presses keys in a field, one after another; `\u{e007}` is Enter.
    pub fn keys(&self, css: &str, keys: &str) {
        self.command(
            "POST",
            &format!("element/{}/value", self.element(css)),
            json!({"text": keys}),
        );
    }

    /// Empties a field.
    pub fn clear(&self, css: &str) {
        self.command("POST", &format!("element/{}/clear", self.element(css)), json!({}));
    }

    /// What a script on the page returns.
    pub fn script(&self, script: &str) -> Value {
        self.command("POST", "execute/sync", json!({"script": script, "args": []}))
    }

    /// Errors of scripts, policies and requests since the last call.
    pub fn errors(&self) -> Vec<String> {
        let entries = self.command("POST", "se/log", json!({"type": "browser"}));
        let errors = entries.as_array().unwrap().iter().filter(|entry| entry["level"] == "SEVERE");
        errors.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The end of the session ends Chromium, unless its page is too busy. No panics here.
        if !self.session.is_empty()
            && let Ok(mut wire) = TcpStream::connect(self.address)
        {
            let path = format!("/session/{}", self.session);
            let end = request("DELETE", &path, &[("connection", "close")], "");
            let _ = wire.set_read_timeout(Some(END));
            let ended = wire.write_all(end.as_bytes()).and_then(|()| wire.read(&mut [0; 64]));
            if let (Err(_), Some(pid)) = (ended, self.pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// "ChromeDriver was started successfully on port 4711."
fn port(said: &mut impl BufRead) -> Option<u16> {
    let mut lines = said.lines().map_while(Result::ok);
    let line = lines.find(|line| line.contains("successfully on port"))?;
    line.trim_end_matches('.').rsplit(' ').next()?.parse().ok()
}

fn capabilities(profile: &str) -> Value {
    let args = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--no-proxy-server",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        &format!("--user-data-dir={profile}"),
    ];
    json!({"capabilities": {"alwaysMatch": {
        "browserName": "chrome",
        "goog:chromeOptions": {"args": args},
        "goog:loggingPrefs": {"browser": "ALL"},
    }}})
}
