//! Who may ask: the names under which the service is called, the pages that call it, the keys.
//!
//! ```text
//! Host      an address, localhost, the machine's name, or a configured one   else 403
//! Origin    the service's own pages, or a configured one                     else 403
//! key       Authorization: Bearer KEY, or x-api-key: KEY                     else 401
//! scope     what the path needs, the key has                                 else 403
//! ```
//!
//! The first two keep web pages out. A page of `evil.example` whose name was made to point at this
//! machine sends its own name as `Host`; a page that sends requests elsewhere names itself in
//! `Origin`. A literal address cannot be made to point anywhere, so it always passes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::http::{HeaderMap, Method, StatusCode, Uri, header};

use super::keys::Scope;
use super::ring::{Key, KeyRing};
use super::{ApiError, ServerError};

/// Paths that need no key, as in llama.cpp, and the page with its description.
const PUBLIC: [&str; 7] =
    ["/", "/health", "/v1/health", "/models", "/v1/models", "/openapi.json", "/v1/pair"];
/// Paths that ask for a peer's key themselves.
const PEERS: [&str; 2] = ["/v1/sync/exchange", "/v1/sync/blobs"];
/// Paths that need the scope of an administrator, with the methods that do.
const ADMIN: [(&str, Option<Method>); 22] = [
    ("/v1/config", None),
    ("/v1/power", Some(Method::PUT)),
    ("/v1/pair/ask", None),
    ("/props", Some(Method::POST)),
    ("/lora-adapters", Some(Method::POST)),
    ("/slots/{id}", None),
    ("/timeline", None),
    ("/timeline/{id}", None),
    ("/logs", None),
    ("/api/pull", None),
    ("/api/delete", None),
    ("/debug", None),
    ("/debug/{id}", None),
    ("/v1/sync", None),
    ("/v1/sync/appliances", None),
    ("/v1/sync/records", None),
    ("/v1/sync/now", None),
    ("/v1/sync/retry", None),
    ("/v1/sync/forget", None),
    ("/v1/sync/peer", None),
    ("/v1/sync/export", None),
    ("/v1/sync/import", None),
];

/// What is allowed.
pub(super) struct Access {
    pub ring: KeyRing,
    /// Names under which the service may be called, the machine's own among them, in small letters.
    pub hosts: Vec<String>,
    /// Pages that may call it; `*` for all.
    pub origins: Vec<String>,
}

impl Access {
    /// Checks the name that the caller used for us.
    pub fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let named = match (uri.authority(), headers.get(header::HOST)) {
            (Some(authority), _) => authority.as_str(),
            (None, Some(host)) => host.to_str().unwrap_or("?"),
            // No browser leaves it out.
            (None, None) => return Ok(()),
        };
        let name = host_name(named);
        let is_literal = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let is_local = name == "localhost" || name.ends_with(".localhost");
        if is_literal || is_local || self.hosts.contains(&name) {
            return Ok(());
        }
        let message = format!(
            "this service is not known as {name:?}; start it with `--allowed-host {name}` if it \
             should be"
        );
        Err(ApiError::new(StatusCode::FORBIDDEN, "permission_error", message))
    }

    /// Checks the page that sent the request, if a page did.
    pub fn check_origin(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let origin = origin.to_str().unwrap_or("?");
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = uri.authority().map(|a| a.as_str()).or(host).unwrap_or_default();
        let is_own = origin
            .split_once("://")
            .is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host));
        let is_listed = |listed: &String| listed == "*" || listed.eq_ignore_ascii_case(origin);
        if is_own || self.origins.iter().any(is_listed) {
            return Ok(());
        }
        let message = format!(
            "pages of {origin:?} may not use this service; start it with `--cors-origin {origin}` \
             if they should"
        );
        Err(ApiError::new(StatusCode::FORBIDDEN, "permission_error", message))
    }

    fn key(&self, headers: &HeaderMap) -> Option<Arc<Key>> {
        presented(headers).and_then(|text| self.ring.find(text))
    }

    /// Whether the caller shows a key, or needs none for anything.
    pub fn knows(&self, headers: &HeaderMap) -> bool {
        !self.ring.is_required() || self.key(headers).is_some()
    }

    /// The caller's key; `None` where none is needed.
    pub fn check_key(
        &self,
        method: &Method,
        route: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Option<Arc<Key>>, ApiError> {
        let is_free = |route| PUBLIC.contains(&route) || PEERS.contains(&route);
        if !self.ring.is_required() || route.is_some_and(is_free) {
            return Ok(None);
        }
        let key = self.key(headers);
        let Some(key) = key else { return Err(ApiError::unauthorized("Invalid API Key")) };
        let needed = scope_of(method, route);
        if key.scopes.contains(&needed) {
            return Ok(Some(key));
        }
        let message = format!("the key {:?} lacks the scope {needed:?}", key.name).to_lowercase();
        Err(ApiError::new(StatusCode::FORBIDDEN, "permission_error", message))
    }
}

/// Refuses an address that others can reach while nothing keeps them out.
///
/// # Errors
/// If the address is not loopback and no request needs a key.
pub(super) fn check_exposure(address: SocketAddr, ring: &KeyRing) -> Result<(), ServerError> {
    match address.ip().is_loopback() || ring.is_required() {
        true => Ok(()),
        false => Err(ServerError::NoKey { address }),
    }
}

fn scope_of(method: &Method, route: Option<&str>) -> Scope {
    let is_it = |(path, only): &(&str, Option<Method>)| {
        Some(*path) == route && only.as_ref().is_none_or(|only| only == method)
    };
    if ADMIN.iter().any(is_it) { Scope::Admin } else { Scope::Inference }
}

/// The key that a request shows.
pub(super) fn presented(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION).or_else(|| headers.get("x-api-key"))?;
    let text = value.to_str().ok()?;
    let is_bearer = text.get(..7).is_some_and(|word| word.eq_ignore_ascii_case("bearer "));
    Some(if is_bearer { text[7..].trim() } else { text.trim() })
}

/// The host of `host:port`, in small letters; a literal IPv6 address keeps its brackets.
fn host_name(authority: &str) -> String {
    let authority = authority.rsplit('@').next().unwrap_or_default();
    let name = match authority.rfind(':') {
        Some(at) if !authority[at..].contains(']') => &authority[..at],
        _ => authority,
    };
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(hosts: &[&str], origins: &[&str], keys: &[&str]) -> Access {
        let own = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let ring = KeyRing::new(&own(keys), None).unwrap();
        Access { ring, hosts: own(hosts), origins: own(origins) }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn names_that_were_not_configured_are_strangers() {
        let access = access(&["nano.lan"], &[], &[]);
        let check = |host: &str| {
            let headers = headers(&[("host", host)]);
            access.check_host(&Uri::from_static("/x"), &headers).is_ok()
        };
        for host in
            ["localhost", "LOCALHOST:80", "127.0.0.1:8080", "[::1]:1", "10.0.0.7", "a.localhost"]
        {
            assert!(check(host), "{host}");
        }
        assert!(check("nano.lan:8080") && check("NANO.lan."));
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", ""] {
            assert!(!check(host), "{host}");
        }
        let uri = Uri::from_static("http://evil.example/x");
        let own = headers(&[("host", "localhost")]);
        assert!(access.check_host(&uri, &own).is_err(), "the line counts");
        assert!(access.check_host(&Uri::from_static("/x"), &HeaderMap::new()).is_ok());
    }

    #[test]
    fn pages_of_others_may_not_call() {
        let ours = access(&[], &["https://ide.example"], &[]);
        let check = |access: &Access, host: &str, origin: &str| {
            let headers = headers(&[("host", host), ("origin", origin)]);
            access.check_origin(&Uri::from_static("/x"), &headers).is_ok()
        };
        assert!(check(&ours, "127.0.0.1:8080", "http://127.0.0.1:8080"));
        assert!(check(&ours, "127.0.0.1:8080", "https://ide.example"));
        for origin in
            ["http://127.0.0.1:3000", "https://evil.example", "null", "", "http://127.0.0.1"]
        {
            assert!(!check(&ours, "127.0.0.1:8080", origin), "{origin}");
        }
        assert!(check(&access(&[], &["*"], &[]), "localhost", "https://any.example"));
    }

    #[test]
    fn a_key_is_found_in_both_headers_and_opens_what_it_may() {
        let access = access(&[], &[], &["secret"]);
        let check = |route: &str, pairs: &[(&'static str, &str)]| {
            let found = access.check_key(&Method::POST, Some(route), &headers(pairs));
            found.map(|key| key.is_some()).map_err(|error| error.status.as_u16())
        };
        assert_eq!(check("/completion", &[("authorization", "Bearer secret")]), Ok(true));
        assert_eq!(check("/completion", &[("authorization", "bearer  secret ")]), Ok(true));
        assert_eq!(check("/completion", &[("authorization", "secret")]), Ok(true));
        assert_eq!(check("/slots/{id}", &[("x-api-key", "secret")]), Ok(true));
        assert_eq!(check("/completion", &[("x-api-key", "secre")]), Err(401));
        // What peers told, and who they are, is not for who may ask for texts.
        for route in ["/v1/sync", "/v1/sync/appliances", "/v1/sync/records", "/v1/pair/ask"] {
            assert_eq!(scope_of(&Method::GET, Some(route)), Scope::Admin, "{route}");
        }
        assert_eq!(check("/completion", &[]), Err(401));
        assert_eq!(check("/health", &[]), Ok(false));
        assert!(access.check_key(&Method::GET, None, &HeaderMap::new()).is_err(), "unknown paths");
    }

    #[test]
    fn an_open_service_stays_on_loopback() {
        let open = KeyRing::new(&[], None).unwrap();
        let kept = KeyRing::new(&["k".to_owned()], None).unwrap();
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(check_exposure(address("127.0.0.1:80"), &open).is_ok());
        assert!(check_exposure(address("[::1]:80"), &open).is_ok());
        for exposed in ["0.0.0.0:80", "192.168.1.5:80", "[::]:80"] {
            let error = check_exposure(address(exposed), &open).unwrap_err().to_string();
            assert!(error.contains("jetforge key create"), "{error}");
            assert!(check_exposure(address(exposed), &kept).is_ok());
        }
    }
}
