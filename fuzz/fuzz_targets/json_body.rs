//! Any body on any path of the service: an answer or an error in the dialect's form, never a panic,
//! and nothing that is the server's fault.
//!
//! The first byte chooses the path. The model is scripted, so that what is asked matters and not
//! what is said: it ends every answer at once.

#![no_main]

use std::sync::OnceLock;

use jetforge_fuzz::service::{PATHS, Service};
use libfuzzer_sys::fuzz_target;

static SERVICE: OnceLock<Service> = OnceLock::new();

fuzz_target!(|input: &[u8]| {
    let Some((first, body)) = input.split_first() else { return };
    let path = PATHS[usize::from(*first) % PATHS.len()];
    let service = SERVICE.get_or_init(|| Service::new(Box::new(|_, end| end)));
    let (status, text) = service.post(path, body);
    assert!(status < 500 || [501, 503].contains(&status), "{path} {status} {text}");
    if cfg!(feature = "canary") {
        assert!(!text.contains("trailing characters"), "canary");
    }
    if status >= 400 {
        let error: serde_json::Value = serde_json::from_str(&text).expect("an error is JSON");
        match path {
            path if path.starts_with("/api/") => assert!(error["error"].is_string()),
            path if path.starts_with("/v1/messages") => assert_eq!(error["type"], "error"),
            "/generate" | "/refactor" | "/explain" | "/test" => {
                assert_eq!(error["metadata"]["error"]["code"], status);
            }
            _ => assert_eq!(error["error"]["code"], status),
        }
    }
});
