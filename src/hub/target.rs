//! Where a backend is: an address as people write it, as what a connection needs.

use axum::http::Uri;

use super::HubError;

/// The address of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whether it speaks TLS.
    pub is_https: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// What stands before every path, without a slash at its end.
    pub prefix: String,
}

impl Target {
    /// Reads `host:port`, `http://host:port/prefix` or `https://host`. A `/v1` at the end is left
    /// out, for it belongs to the paths.
    ///
    /// # Errors
    /// If it is no such address, or holds a password.
    pub fn read(text: &str, default_port: Option<u16>) -> Result<Target, HubError> {
        let wrong = |why: &'static str| HubError::Address { text: text.to_owned(), why };
        let whole = match text.contains("://") {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        let uri: Uri = whole.parse().map_err(|_| wrong("that is no address"))?;
        let is_https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("use http or https")),
        };
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err(wrong("a password does not belong into an address; use a key"));
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let usual = if is_https { 443 } else { 80 };
        let port = uri.port_u16().or(default_port.filter(|_| !is_https)).unwrap_or(usual);
        if host.is_empty() || port == 0 || uri.query().is_some() {
            return Err(wrong("use host:port or a URL"));
        }
        let path = uri.path().trim_end_matches('/');
        let prefix = path.strip_suffix("/v1").unwrap_or(path).to_owned();
        Ok(Target { is_https, host, port, prefix })
    }

    /// Whether both are the same place, with TLS or without.
    pub fn is_place_of(&self, other: &Target) -> bool {
        let is_host = self.host.eq_ignore_ascii_case(&other.host);
        is_host && self.port == other.port && self.prefix == other.prefix
    }

    /// `host:port`, as in a header.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// The place, with TLS or without: a word without blanks.
    pub fn place(&self) -> String {
        format!("{}{}", self.authority(), self.prefix)
    }

    /// The address as a URL.
    pub fn url(&self) -> String {
        let scheme = if self.is_https { "https" } else { "http" };
        format!("{scheme}://{}", self.place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<String> {
        Target::read(text, Some(8080)).ok().map(|target| target.url())
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, url) in [
            ("nano", "http://nano:8080"),
            ("192.168.1.100:8888", "http://192.168.1.100:8888"),
            ("http://nano.lan/", "http://nano.lan:8080"),
            ("[::1]:9", "http://[::1]:9"),
            ("https://api.example/v1", "https://api.example:443"),
            ("http://x:1/llm/v1/", "http://x:1/llm"),
        ] {
            assert_eq!(read(text).as_deref(), Some(url), "{text}");
        }
        for text in ["", "ftp://x", "http://a:b@c", "x y", "x:0", "http://x/?a=1", ":80"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
