//! Downloads over real TLS from a server that misbehaves on purpose: it redirects, drops, stalls,
//! lies about length and hash, changes its ETag and ignores ranges.
//!
//! Each test gives the server a closure that answers the n-th request; what it was asked is kept,
//! so that tests also see what the client sent.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jetforge::base::hash::hex;
use jetforge::inference::gguf::GgufBuilder;
use jetforge::inference::quant::TensorType;
use jetforge::library::{LibraryError, PullEvent, PullOptions, PullRequest, Pulled, Record, pull};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest, Sha256};

/// What the server was asked.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub path: String,
    pub from: Option<usize>,
    if_range: Option<String>,
}

pub type Connection = StreamOwned<ServerConnection, TcpStream>;
pub type Done = std::io::Result<()>;
type Answer = dyn Fn(usize, &Asked, &mut Connection) -> Done + Send + Sync;

/// A server of files over TLS, on loopback.
pub struct Server {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// The test's certificate authority in PEM, and a server configuration that it signed.
pub fn authority() -> &'static (String, Arc<ServerConfig>) {
    static AUTHORITY: OnceLock<(String, Arc<ServerConfig>)> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        (ca.pem(), Arc::new(config))
    })
}

impl Server {
    pub fn start(
        answer: impl Fn(usize, &Asked, &mut Connection) -> Done + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("localhost:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, log): (Arc<Answer>, _) = (Arc::new(answer), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, log) = (answer.clone(), log.clone());
                std::thread::spawn(move || serve(stream, &*answer, &log));
            }
        });
        Server { port, asked }
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.port)
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// Reads one request and answers it. Errors are the client's going away, which is its right.
fn serve(stream: TcpStream, answer: &Answer, log: &Mutex<Vec<Asked>>) {
    let connection = ServerConnection::new(authority().1.clone()).unwrap();
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
    let mut asked = Asked::default();
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
        let text = line.trim();
        if let Some(rest) = text.strip_prefix("GET ") {
            asked.path = rest.split(' ').next().unwrap_or_default().to_owned();
        } else if let Some((name, value)) = text.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "range" => {
                    let from = value.trim_start_matches("bytes=").trim_end_matches('-');
                    asked.from = from.parse().ok();
                }
                "if-range" => asked.if_range = Some(value.to_owned()),
                _ => {}
            }
        }
        line.clear();
    }
    if asked.path.is_empty() {
        return;
    }
    let n = {
        let mut log = log.lock().unwrap();
        log.push(asked.clone());
        log.len() - 1
    };
    let _ = answer(n, &asked, reader.get_mut());
}

fn head(out: &mut Connection, status: &str, headers: &[(&str, String)]) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 {status}\r\nConnection: close\r\n")?;
    for (name, value) in headers {
        write!(out, "{name}: {value}\r\n")?;
    }
    write!(out, "\r\n")
}

/// A whole body and a clean end.
pub fn whole(out: &mut Connection, body: &[u8], etag: &str) -> std::io::Result<()> {
    let length = body.len().to_string();
    head(out, "200 OK", &[("Content-Length", length), ("ETag", etag.to_owned())])?;
    out.write_all(body)?;
    close(out)
}

/// The part of a body from `from`.
pub fn part(out: &mut Connection, body: &[u8], from: usize, etag: &str) -> std::io::Result<()> {
    let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
    let headers = [
        ("Content-Length", (body.len() - from).to_string()),
        ("Content-Range", range),
        ("ETag", etag.to_owned()),
    ];
    head(out, "206 Partial Content", &headers)?;
    out.write_all(&body[from..])?;
    close(out)
}

/// Promises the whole body and breaks off after `n` bytes.
pub fn broken(out: &mut Connection, body: &[u8], n: usize, etag: &str) -> std::io::Result<()> {
    let length = body.len().to_string();
    head(out, "200 OK", &[("Content-Length", length), ("ETag", etag.to_owned())])?;
    out.write_all(&body[..n])?;
    out.flush()?;
    out.sock.shutdown(std::net::Shutdown::Both)
}

fn close(out: &mut Connection) -> std::io::Result<()> {
    out.conn.send_close_notify();
    out.flush()
}

fn redirect(out: &mut Connection, to: &str) -> std::io::Result<()> {
    head(out, "302 Found", &[("Location", to.to_owned()), ("Content-Length", "0".to_owned())])?;
    close(out)
}

/// A model of about 300 kB whose bytes depend on `seed`.
fn model(seed: u8) -> Vec<u8> {
    let weights: Vec<u8> = (0..300_000u32).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
    GgufBuilder::new()
        .pair("general.architecture", "llama")
        .tensor("w", &[75_000], TensorType::F32, weights)
        .build()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// A directory for models, and the options of an impatient client that trusts the test authority.
struct Place {
    dir: tempfile::TempDir,
    options: PullOptions,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let ca_file = dir.path().join("ca.pem");
        std::fs::write(&ca_file, &authority().0).unwrap();
        let options = PullOptions {
            ca_file: Some(ca_file),
            stall: Duration::from_millis(1500),
            pause: Duration::from_millis(1),
        };
        Place { dir, options }
    }

    fn models(&self) -> PathBuf {
        self.dir.path().join("models")
    }

    fn request(&self, url: &str) -> PullRequest {
        PullRequest {
            url: url.to_owned(),
            dir: self.models(),
            file_name: "m.gguf".to_owned(),
            sha256: None,
            size_bytes: None,
            force: false,
        }
    }

    fn pull(&self, url: &str) -> Result<Pulled, LibraryError> {
        pull(&self.request(url), &self.options, &mut |_| {})
    }

    /// The model's bytes, if it is there.
    fn model(&self) -> Option<Vec<u8>> {
        std::fs::read(self.models().join("m.gguf")).ok()
    }

    /// Names of all files in the directory of models.
    fn files(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.models())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn a_model_comes_with_its_record() {
    let body = model(1);
    let expected = sha256(&body);
    let server = Server::start(move |_, _, out| whole(out, &body, "\"v1\""));
    let place = Place::new();
    let mut n_bytes = 0;
    let mut request = place.request(&server.url("/m.gguf"));
    request.sha256 = Some(expected.to_uppercase());
    let pulled = pull(&request, &place.options, &mut |event| {
        if let PullEvent::Received { done_bytes } = event {
            n_bytes = done_bytes;
        }
    })
    .unwrap();
    assert_eq!(pulled.name, "m");
    assert!(pulled.is_checked && !pulled.was_here);
    assert_eq!(n_bytes, pulled.size_bytes);
    assert_eq!(place.files(), [".m.gguf.json", "m.gguf"]);
    let record = std::fs::read(place.models().join(".m.gguf.json")).unwrap();
    let record: Record = serde_json::from_slice(&record).unwrap();
    assert_eq!(record.sha256, expected);
    assert_eq!(record.etag.as_deref(), Some("\"v1\""));

    let again = place.pull(&server.url("/m.gguf")).unwrap();
    assert!(again.was_here);
    assert_eq!(server.asked().len(), 1, "what is here is not fetched again");
}

#[test]
fn redirects_are_followed_and_bounded() {
    let body = model(2);
    let server = Server::start(move |_, asked, out| match asked.path.as_str() {
        "/start" => redirect(out, "/dir/second?x=1"),
        "/dir/second?x=1" => redirect(out, "third"),
        "/dir/third" => whole(out, &body, "\"v1\""),
        "/loop" => redirect(out, "/loop"),
        "/leave" => redirect(out, "http://localhost:1/m.gguf"),
        _ => redirect(out, "ftp://localhost/m.gguf"),
    });
    let place = Place::new();
    place.pull(&server.url("/start")).unwrap();
    assert!(place.model().is_some());

    let place = Place::new();
    let error = place.pull(&server.url("/loop")).unwrap_err();
    assert!(error.to_string().contains("too many"), "{error}");
    let n_loop = server.asked().iter().filter(|asked| asked.path == "/loop").count();
    assert_eq!(n_loop, 9);
    let error = place.pull(&server.url("/leave")).unwrap_err();
    assert!(matches!(&error, LibraryError::Redirect { .. }), "{error}");
    assert!(error.to_string().contains("leaves https"), "{error}");
    assert!(place.pull(&server.url("/odd")).is_err());
    assert!(place.files().is_empty(), "{:?}", place.files());
}

#[test]
fn a_broken_connection_resumes_where_it_broke() {
    let body = model(3);
    let expected = body.clone();
    let server = Server::start(move |n, asked, out| match (n, asked.from) {
        (0, _) => broken(out, &body, 100_000, "\"v1\""),
        (_, Some(from)) => part(out, &body, from, "\"v1\""),
        (_, None) => whole(out, &body, "\"v1\""),
    });
    let place = Place::new();
    place.pull(&server.url("/m.gguf")).unwrap();
    assert_eq!(place.model().unwrap(), expected);
    let asked = server.asked();
    assert_eq!(asked.len(), 2);
    assert!(asked[1].from.is_some_and(|from| (1..=100_000).contains(&from)), "{asked:?}");
    assert_eq!(asked[1].if_range.as_deref(), Some("\"v1\""));
}

#[test]
fn another_call_resumes_too() {
    let body = model(4);
    let expected = body.clone();
    let is_up = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let up = is_up.clone();
    let server = Server::start(move |n, asked, out| {
        match (up.load(std::sync::atomic::Ordering::SeqCst), asked.from) {
            (true, Some(from)) => part(out, &body, from, "\"v1\""),
            (true, None) => whole(out, &body, "\"v1\""),
            (false, _) if n == 0 => broken(out, &body, 50_000, "\"v1\""),
            (false, _) => head(out, "503 Service Unavailable", &[("Content-Length", "0".into())]),
        }
    });
    let place = Place::new();
    let error = place.pull(&server.url("/m.gguf")).unwrap_err();
    assert!(matches!(error, LibraryError::Network { n_attempts: 8, .. }), "{error}");
    assert_eq!(place.files(), [".m.gguf.part", ".m.gguf.part.json"]);
    is_up.store(true, std::sync::atomic::Ordering::SeqCst);
    place.pull(&server.url("/m.gguf")).unwrap();
    assert_eq!(place.model().unwrap(), expected);
    assert!(server.asked().last().unwrap().from.is_some());
    assert_eq!(place.files(), [".m.gguf.json", "m.gguf"]);
}

#[test]
fn a_server_without_ranges_starts_over() {
    let body = model(5);
    let expected = body.clone();
    let server = Server::start(move |n, _, out| match n {
        0 => broken(out, &body, 100_000, "\"v1\""),
        _ => whole(out, &body, "\"v1\""),
    });
    let place = Place::new();
    place.pull(&server.url("/m.gguf")).unwrap();
    assert_eq!(place.model().unwrap(), expected);
}

#[test]
fn a_changed_file_is_never_mixed_with_the_old_one() {
    // An honest server answers If-Range with the new file; a careless one sends the new rest.
    for is_honest in [true, false] {
        let (old, new) = (model(6), model(7));
        let expected = new.clone();
        let server = Server::start(move |n, asked, out| match (n, asked.from) {
            (0, _) => broken(out, &old, 100_000, "\"v1\""),
            (1, Some(from)) if !is_honest => part(out, &new, from, "\"v2\""),
            _ => whole(out, &new, "\"v2\""),
        });
        let place = Place::new();
        place.pull(&server.url("/m.gguf")).unwrap();
        assert!(place.model().unwrap() == expected, "honest: {is_honest}");
    }
}

#[test]
fn without_an_etag_the_hash_decides() {
    // The file changes under a server that sends no ETag: the mix is found and fetched anew.
    let (old, new) = (model(8), model(9));
    let expected = new.clone();
    let no_etag = "W/\"weak\"";
    let server = Server::start(move |n, asked, out| match (n, asked.from) {
        (0, _) => broken(out, &old, 100_000, no_etag),
        (_, Some(from)) => part(out, &new, from, no_etag),
        (_, None) => whole(out, &new, no_etag),
    });
    let place = Place::new();
    let mut request = place.request(&server.url("/m.gguf"));
    request.sha256 = Some(sha256(&expected));
    pull(&request, &place.options, &mut |_| {}).unwrap();
    assert!(place.model().unwrap() == expected);
    let asked = server.asked();
    assert_eq!(asked.len(), 3);
    assert!(asked[1].from.is_some() && asked[1].if_range.is_none() && asked[2].from.is_none());
}

/// A server that lies in the way that the path names.
pub fn liar(body: Vec<u8>) -> Server {
    let claim =
        |out: &mut Connection, n: u64| head(out, "200 OK", &[("Content-Length", n.to_string())]);
    Server::start(move |_, asked, out| match asked.path.as_str() {
        // Claims less than there is: what comes is a model cut short.
        "/short" => {
            claim(out, body.len() as u64 - 1000)?;
            out.write_all(&body)?;
            close(out)
        }
        // Claims more than ever comes.
        "/long" => {
            claim(out, body.len() as u64 + 1)?;
            out.write_all(&body)?;
            close(out)
        }
        // Claims more than any disk holds.
        "/huge.gguf" => {
            claim(out, 1 << 60)?;
            out.write_all(&body)
        }
        "/page" => whole(out, b"<!DOCTYPE html><html></html>", "\"v1\""),
        "/empty" => whole(out, b"", "\"v1\""),
        _ => whole(out, &body, "\"v1\""),
    })
}

#[test]
fn lies_about_the_length_are_found() {
    let server = liar(model(10));
    let place = Place::new();
    let error = place.pull(&server.url("/short")).unwrap_err();
    assert!(matches!(error, LibraryError::NotAModel { .. }), "{error}");
    let error = place.pull(&server.url("/page")).unwrap_err();
    assert!(error.to_string().contains("web page"), "{error}");
    let error = place.pull(&server.url("/empty")).unwrap_err();
    assert!(error.to_string().contains("empty"), "{error}");
    let error = place.pull(&server.url("/huge.gguf")).unwrap_err();
    assert!(matches!(error, LibraryError::NoSpace { .. }), "{error}");
    let request = PullRequest { size_bytes: Some(7), ..place.request(&server.url("/m")) };
    let error = pull(&request, &place.options, &mut |_| {}).unwrap_err();
    assert!(matches!(error, LibraryError::Mismatch { property: "size", .. }), "{error}");
    assert!(place.files().is_empty(), "nothing wrong stays: {:?}", place.files());

    let error = place.pull(&server.url("/long")).unwrap_err();
    assert!(matches!(error, LibraryError::Network { .. }), "{error}");
    assert!(place.model().is_none());
}

#[test]
fn lies_about_the_hash_are_found() {
    let server = liar(model(15));
    let place = Place::new();
    let mut request = place.request(&server.url("/m"));
    request.sha256 = Some("00".repeat(32));
    let error = pull(&request, &place.options, &mut |_| {}).unwrap_err();
    assert!(matches!(error, LibraryError::Mismatch { property: "SHA-256", .. }), "{error}");
    assert!(place.files().is_empty(), "nothing wrong stays: {:?}", place.files());
}

#[test]
fn a_stalled_server_is_left_and_asked_again() {
    let body = model(11);
    let expected = body.clone();
    let server = Server::start(move |n, asked, out| match (n, asked.from) {
        (0, _) => {
            let length = body.len().to_string();
            head(out, "200 OK", &[("Content-Length", length), ("ETag", "\"v1\"".to_owned())])?;
            out.write_all(&body[..80_000])?;
            out.flush()?;
            std::thread::sleep(Duration::from_secs(20));
            Ok(())
        }
        (_, Some(from)) => part(out, &body, from, "\"v1\""),
        _ => whole(out, &body, "\"v1\""),
    });
    let place = Place::new();
    let started = std::time::Instant::now();
    let mut reasons = Vec::new();
    let request = place.request(&server.url("/m.gguf"));
    let mut on_event = |event: PullEvent<'_>| {
        if let PullEvent::Retrying { reason, .. } = event {
            reasons.push(reason.to_owned());
        }
    };
    pull(&request, &place.options, &mut on_event).unwrap();
    assert_eq!(place.model().unwrap(), expected);
    assert!(reasons[0].contains("no data"), "{reasons:?}");
    assert!(started.elapsed() < Duration::from_secs(15));
}

#[test]
fn answers_of_the_server_are_told_apart() {
    let body = model(12);
    let server = Server::start(move |n, asked, out| match (asked.path.as_str(), n) {
        ("/busy", 0) => {
            let headers = [("Retry-After", "0".to_owned()), ("Content-Length", "0".to_owned())];
            head(out, "429 Too Many Requests", &headers)?;
            close(out)
        }
        ("/busy", _) => whole(out, &body, "\"v1\""),
        _ => {
            head(out, "404 Not Found", &[("Content-Length", "0".to_owned())])?;
            close(out)
        }
    });
    let place = Place::new();
    place.pull(&server.url("/busy")).unwrap();
    assert_eq!(server.asked().len(), 2);
    let place = Place::new();
    let error = place.pull(&server.url("/gone")).unwrap_err();
    assert!(error.to_string().contains("404"), "{error}");
    assert_eq!(server.asked().len(), 3, "a refusal is not argued with");
    assert!(place.files().is_empty());
}

#[test]
fn only_proved_servers_are_believed() {
    let server = Server::start(|_, _, out| whole(out, &model(13), "\"v1\""));
    let mut place = Place::new();
    let by_address = format!("https://127.0.0.1:{}/m.gguf", server.port);
    let error = place.pull(&by_address).unwrap_err();
    // The listener may be on ::1 alone, where the address does not answer at all.
    let is_refused = matches!(error, LibraryError::Untrusted { .. } | LibraryError::Network { .. });
    assert!(is_refused, "{error}");
    place.options.ca_file = None;
    let error = place.pull(&server.url("/m.gguf")).unwrap_err();
    assert!(matches!(error, LibraryError::Untrusted { .. }), "{error}");
    assert!(error.to_string().contains("--ca-file"), "{error}");
    assert!(server.asked().is_empty());
    let error = place.pull("http://localhost:1/m.gguf").unwrap_err();
    assert!(error.to_string().contains("--sha256"), "{error}");
    place.options.ca_file = Some(place.dir.path().join("none.pem"));
    let error = place.pull(&server.url("/m.gguf")).unwrap_err();
    assert!(matches!(error, LibraryError::Certificates { .. }), "{error}");
}

#[test]
fn every_shard_of_a_split_model_comes() {
    let shard = |number: u16| {
        GgufBuilder::new()
            .pair("split.no", number)
            .pair("split.count", 2u16)
            .pair("split.tensors.count", 0i32)
            .build()
    };
    let server = Server::start(move |_, asked, out| {
        whole(out, &shard(u16::from(asked.path.contains("00002-of"))), "\"v1\"")
    });
    let place = Place::new();
    let request = PullRequest {
        file_name: "big-00001-of-00002.gguf".to_owned(),
        ..place.request(&server.url("/big-00001-of-00002.gguf"))
    };
    let pulled = pull(&request, &place.options, &mut |_| {}).unwrap();
    assert_eq!((pulled.name.as_str(), pulled.files.len()), ("big", 2));
}

#[test]
fn the_binary_has_an_exit_code_for_each_failure() {
    let body = model(14);
    let size = body.len();
    let server = Server::start(move |_, asked, out| match asked.path.as_str() {
        "/m.gguf" => whole(out, &body, "\"v1\""),
        _ => {
            head(out, "404 Not Found", &[("Content-Length", "0".to_owned())])?;
            close(out)
        }
    });
    let place = Place::new();
    let catalog = place.dir.path().join("catalog.toml");
    let entry = |name: &str, path: &str, size: usize| {
        let url = server.url(path);
        format!("[[model]]\nname = \"{name}\"\nurl = \"{url}\"\nsize_bytes = {size}\n")
    };
    let text = [
        entry("good", "/m.gguf", size),
        entry("liar", "/m.gguf", 5),
        entry("gone", "/x.gguf", 0),
        "[[model]]\nname = \"nowhere\"\n".to_owned(),
    ];
    std::fs::write(&catalog, text.concat()).unwrap();
    let run = |args: &[&str]| {
        let output = crate::cli::jetforge(place.dir.path())
            .env("JETFORGE_LIBRARY_CATALOG", &catalog)
            .env("JETFORGE_PULL_PAUSE_MS", "1")
            .args(["pull", "--ca-file"])
            .arg(place.dir.path().join("ca.pem"))
            .arg("--dir")
            .arg(place.models())
            .args(args)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap(), error)
    };
    let cases: [(&[&str], i32); 6] = [
        (&["liar"], 6),
        (&["gone"], 5),
        (&["nowhere"], 3),
        (&["unheard-of"], 3),
        (&["good", "--sha256", "12"], 2),
        (&["https://localhost:1/m.gguf"], 5),
    ];
    for (args, code) in cases {
        let (got, _, error) = run(args);
        assert_eq!(got, code, "{args:?}: {error}");
    }
    let (code, json, error) = run(&["good", "--json"]);
    assert_eq!(code, 0, "{error}");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["size_bytes"], size);
    let (code, path, _) = run(&["good"]);
    assert_eq!((code, Path::new(path.trim())), (0, place.models().join("m.gguf").as_path()));
}
