//! TLS between hub and appliance: real processes, certificates that change, and who stands in
//! between.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use jetforge::tls::Trust;
use rustls::{ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::cli::jetforge;
use crate::pull::authority;
use crate::serve::Process;
use crate::support::http::{get, post, until};

const STATE: &str = ".local/state/jetforge";

/// Code, stdout and stderr of a run that ends by itself.
fn run(home: &Path, args: &[&str]) -> (i32, String, String) {
    let output = jetforge(home).args(args).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Pairs the machine of `home` with the one at `address`, by a new code of `nano`.
fn pair(home: &Path, nano: &Path, address: SocketAddr) -> (i32, String) {
    let (_, code, _) = run(nano, &["pair"]);
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let args = ["setup", "--nano-ip", &ip, "--nano-port", &port, "--code", code.trim()];
    let (code, _, said) = run(home, &args);
    (code, said)
}

fn hub(home: &Path) -> Process {
    let quick = ["--port", "0", "--no-local", "--set", "hub.probe_ms=50"];
    Process::start_verb(home, "hub", &quick)
}

fn backend(hub: SocketAddr) -> Value {
    get(hub, "/v1/status").json()["upstream"]["backends"][0].clone()
}

#[test]
fn a_hub_knows_a_paired_appliance_by_its_certificate_alone() {
    let homes = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [nano_home, home, stranger] = [0, 1, 2].map(|i| homes[i].path());
    let own = ["--tls", "--api-key", "jf-nano", "--alias", "coder"];
    let nano = Process::start(nano_home, &own);
    let kept = nano_home.join(STATE).join("tls.pem");
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    // Plain HTTP is told what is spoken here.
    let answer = get(nano.address, "/health");
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("speaks TLS"), "{}", answer.text());
    let (code, said) = pair(home, nano_home, nano.address);
    assert_eq!(code, 0, "{said}");
    let hub = hub(home);
    until("the appliance is well", || backend(hub.address)["standing"] == "well");
    let told = backend(hub.address);
    let url = format!("https://{}", nano.address);
    assert_eq!((&told["tls"], &told["address"]), (&json!("pinned"), &json!(url)));
    let body = json!({"model": "coder", "prompt": "def add(a, b):", "max_tokens": 4});
    let answer = post(hub.address, "/v1/completions", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    // People: by the certificate of the pairing, also while a hub has the store; a stranger by
    // what the service says of itself, or not at all.
    let address = nano.address.to_string();
    let pin = nano.certificate.unwrap().to_string();
    let ask = |home: &Path, url: &str, more: &[&str]| {
        let own = ["client", "--raw", "--prompt", "x", "-n", "2", "--key", "jf-nano", "--url", url];
        run(home, &[&own, more].concat())
    };
    for (home, url, more) in
        [(home, &address, &[][..]), (home, &url, &[]), (stranger, &url, &["--certificate", &pin])]
    {
        let (code, _, said) = ask(home, url, more);
        assert_eq!(code, 0, "{url}: {said}");
    }
    let (code, _, said) = ask(stranger, &url, &[]);
    assert!(code != 0 && said.contains("certificate"), "{said}");
    let (code, _, said) =
        ask(stranger, &url, &["--certificate", &pin.replace(['0', '1', '2', '3'], "4")]);
    assert!(code != 0 && said.contains("another certificate"), "{said}");
    // Where the certificate was made anew, nobody who was paired goes on as if nothing had been.
    let port = nano.address.port().to_string();
    nano.kill();
    std::fs::remove_file(&kept).unwrap();
    let again = [&["--port", &port][..], &own].concat();
    let nano = Process::start_verb(nano_home, "serve", &again);
    assert_ne!(nano.certificate.unwrap().to_string(), pin);
    let is_found_out =
        |why: &Value| why.as_str().is_some_and(|why| why.contains("another certificate"));
    until("the hub finds out", || is_found_out(&backend(hub.address)["why"]));
    assert_eq!(post(hub.address, "/v1/completions", &body).status, 502);
    let hub_address = hub.address.to_string();
    until("sync finds out", || {
        run(home, &["sync", "now", "--url", &hub_address]);
        let (_, told, _) = run(home, &["sync", "status", "--json", "--url", &hub_address]);
        let told: Value = serde_json::from_str(&told).unwrap_or_default();
        is_found_out(&told["peers"][0]["trouble"])
    });
    let (code, _, said) = ask(home, &address, &[]);
    assert!(code != 0 && said.contains("jetforge setup"), "{said}");
    drop(hub);
    let (code, said) = pair(home, nano_home, nano.address);
    assert_eq!(code, 0, "{said}");
    let (code, _, said) = ask(home, &address, &[]);
    assert_eq!(code, 0, "{said}");
}

/// Passes requests on to a service that speaks TLS, each on a connection of its own, and shows
/// its own certificate or none.
fn in_between(to: SocketAddr, has_tls: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || match has_tls {
                true => {
                    let connection = ServerConnection::new(authority().1.clone()).unwrap();
                    let mut client = StreamOwned::new(connection, stream);
                    let passed = pass(&mut client, to);
                    client.conn.send_close_notify();
                    passed.and(client.flush())
                }
                false => pass(stream, to),
            });
        }
    });
    address
}

fn pass(client: impl Read + Write, to: SocketAddr) -> std::io::Result<()> {
    let mut client = BufReader::new(client);
    let (mut request, mut n_bytes) = (String::new(), 0);
    while !request.ends_with("\r\n\r\n") {
        let at = request.len();
        if client.read_line(&mut request)? == 0 {
            return Ok(());
        }
        if let Some(n) = request[at..].to_ascii_lowercase().strip_prefix("content-length:") {
            n_bytes = n.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; n_bytes];
    client.read_exact(&mut body)?;
    let stream = TcpStream::connect(to)?;
    let mut service = Trust::anyone().connect_blocking("localhost", stream).unwrap();
    service.write_all(request.as_bytes())?;
    service.write_all(&body)?;
    let mut answer = Vec::new();
    service.read_to_end(&mut answer)?;
    client.get_mut().write_all(&answer)?;
    client.get_mut().flush()
}

#[test]
fn who_stands_in_between_cannot_be_paired_with() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let nano = Process::start(homes[0].path(), &["--tls"]);
    for has_tls in [true, false] {
        let between = in_between(nano.address, has_tls);
        let (code, said) = pair(homes[1].path(), homes[0].path(), between);
        assert_eq!(code, 6, "{said}");
        assert!(said.contains("stands in between"), "{said}");
    }
    let (code, told, _) = run(homes[1].path(), &["sync", "status", "--json"]);
    assert!(code != 0 || !told.contains("peers\":[{"), "nothing was kept: {told}");
}

#[test]
fn an_owners_certificate_is_shown_and_halves_are_refused() {
    let home = tempfile::tempdir().unwrap();
    drop(Process::start(home.path(), &["--tls"]));
    let path = home.path().join(STATE).join("tls.pem").display().to_string();
    let both = ["--ssl-cert-file", &path, "--ssl-key-file", &path];
    let service = Process::start(home.path(), &both);
    let url = format!("https://{}", service.address);
    let (code, _, said) = run(home.path(), &["jobs", "list", "--url", &url]);
    assert_eq!(code, 0, "its own certificate is known here: {said}");
    assert_eq!(run(home.path(), &["serve", "--ssl-cert-file", &path]).0, 2);
    let none = home.path().join("none").display().to_string();
    let (code, _, said) =
        run(home.path(), &["serve", "--ssl-cert-file", &none, "--ssl-key-file", &path]);
    assert!(code == 2 && said.contains("none"), "{said}");
}
