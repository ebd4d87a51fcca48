//! The page at `/`: one file of HTML, style and script, where a person can try the model.
//!
//! It asks only this service, and its content policy says so to the browser: nothing runs but the
//! script whose hash is named, and nothing is loaded from anywhere.

use std::sync::LazyLock;

use axum::Router;
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use sha2::{Digest, Sha256};

const PAGE: &str = include_str!("page.html");

/// The page's content policy, with the hashes of its own style and script.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; connect-src 'self'; style-src '{}'; script-src '{}'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash_of("style"),
        hash_of("script")
    )
});

/// The routes of this file.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let page = async |headers: HeaderMap| {
        if is_ollama(&headers) {
            return "Ollama is running".into_response();
        }
        let headers = [
            (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, Html(PAGE)).into_response()
    };
    Router::new().route("/", get(page))
}

/// Whether an Ollama client looks if its service is there: by its name, or by wanting plain text.
fn is_ollama(headers: &HeaderMap) -> bool {
    let says = |name, word: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.is_some_and(|value| value.to_ascii_lowercase().starts_with(word))
    };
    says(header::USER_AGENT, "ollama") || says(header::ACCEPT, "text/plain")
}

/// The hash of what an element of the page holds, as a content policy names it.
fn hash_of(element: &str) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let held = PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close));
    let held = held.map_or("", |(held, _)| held);
    format!("sha256-{}", base64(&Sha256::digest(held.as_bytes())))
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_as_everywhere() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        for word in ["http://", "https://", "src=", "href=", "@import", "url(", "onclick"] {
            assert!(!PAGE.contains(word), "{word}");
        }
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert_eq!(PAGE.matches("<style").count(), 1);
        assert_eq!(PAGE.matches(" style=").count(), 0, "the policy forbids it");
        assert!(!POLICY.contains("sha256-47DEQpj8"), "the hash of nothing");
    }
}
