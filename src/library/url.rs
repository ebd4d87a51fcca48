//! Addresses: what may be fetched, where a redirect leads, and the file name at the end.

use hyper::Uri;

use super::LibraryError;
use crate::base::hash::unhex;
use crate::base::limits::{MODEL_NAME_BYTES_MAX, URL_BYTES_MAX};

/// An absolute `http` or `https` address.
///
/// # Errors
/// For anything else, including addresses that carry a user name or password.
pub fn parse(text: &str) -> Result<Uri, LibraryError> {
    let bad = |reason: &str| LibraryError::BadUrl {
        url: text.chars().take(200).collect(),
        reason: reason.to_owned(),
    };
    if text.len() > URL_BYTES_MAX {
        return Err(bad("it is too long"));
    }
    // A fragment is for the client alone and `Uri` drops it.
    let uri: Uri = text.parse().map_err(|error| bad(&format!("{error}")))?;
    match uri.scheme_str() {
        Some("https" | "http") => {}
        Some(_) => return Err(bad("only https and http are spoken")),
        None => return Err(bad("it has no scheme")),
    }
    let authority = uri.authority().ok_or_else(|| bad("it has no host"))?;
    if authority.host().is_empty() {
        return Err(bad("it has no host"));
    }
    if authority.as_str().contains('@') {
        return Err(bad("names and passwords do not belong in an address"));
    }
    Ok(uri)
}

/// Whether the connection is encrypted.
pub fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

/// Host without brackets, and port.
pub fn host_and_port(uri: &Uri) -> (String, u16) {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    (host, uri.port_u16().unwrap_or(if is_https(uri) { 443 } else { 80 }))
}

/// Where a `Location` header leads from `base`.
///
/// # Errors
/// When the result is not an address, or leaves https for http.
pub fn redirect(base: &Uri, location: &str) -> Result<Uri, LibraryError> {
    let scheme = base.scheme_str().unwrap_or("https");
    let authority = base.authority().map_or("", |a| a.as_str());
    let absolute = if location.contains("://") {
        location.to_owned()
    } else if let Some(rest) = location.strip_prefix("//") {
        format!("{scheme}://{rest}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.starts_with('?') {
        format!("{scheme}://{authority}{}{location}", base.path())
    } else {
        let dir = base.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        format!("{scheme}://{authority}{dir}/{location}")
    };
    let target = parse(&absolute)?;
    if is_https(base) && !is_https(&target) {
        return Err(LibraryError::Redirect {
            from: base.to_string(),
            to: target.to_string(),
            reason: "it leaves https for http",
        });
    }
    Ok(target)
}

/// The file name that an address ends in, made of letters, digits, `.`, `_`, `+` and `-`.
///
/// # Errors
/// When the address has none, or it is not a `.gguf` file.
pub fn file_name_of(text: &str) -> Result<String, LibraryError> {
    let uri = parse(text)?;
    let last = uri.path().rsplit('/').next().unwrap_or_default();
    let name: String = percent_decode(last)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._+-".contains(c) { c } else { '_' })
        .collect();
    check_file_name(&name)?;
    Ok(name)
}

/// Whether a name can be a model's file in the store.
///
/// # Errors
/// Names the reason.
pub fn check_file_name(name: &str) -> Result<(), LibraryError> {
    let reason = if name.is_empty() {
        "it is empty"
    } else if name.len() > MODEL_NAME_BYTES_MAX {
        "it is too long"
    } else if name.starts_with('.') || name.starts_with('-') {
        "it starts with a dot or a dash"
    } else if name.contains(['/', '\\', '\0']) {
        "it has a slash"
    } else if !name.ends_with(".gguf") {
        "it does not end in .gguf"
    } else {
        return Ok(());
    };
    Err(LibraryError::BadName { name: name.to_owned(), reason })
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        match (bytes[i], text.get(i + 1..i + 3).and_then(unhex::<[u8; 1]>)) {
            (b'%', Some([byte])) => {
                out.push(byte);
                i += 3;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_web_addresses_are_taken() {
        assert!(parse("https://h:8443/a%20b?c=d").is_ok());
        for bad in ["ftp://h/x", "/x", "file:///etc/passwd", "https://u:p@h/x", "https://h/a b", ""]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(host_and_port(&parse("https://[::1]:9/").unwrap()), ("::1".into(), 9));
        assert_eq!(host_and_port(&parse("http://h/").unwrap()), ("h".into(), 80));
    }

    #[test]
    fn redirects_resolve_against_their_base() {
        let base = parse("https://h:1/a/b?q").unwrap();
        let cases = [
            ("https://other/x", "https://other/x"),
            ("//other/x", "https://other/x"),
            ("/x?y", "https://h:1/x?y"),
            ("c", "https://h:1/a/c"),
            ("?z", "https://h:1/a/b?z"),
        ];
        for (location, expected) in cases {
            assert_eq!(redirect(&base, location).unwrap().to_string(), expected);
        }
        assert!(redirect(&base, "http://h/x").unwrap_err().to_string().contains("leaves https"));
        assert!(redirect(&parse("http://h/").unwrap(), "https://h/x").is_ok());
    }

    #[test]
    fn file_names_are_tame() {
        assert_eq!(file_name_of("https://h/d/a%2Fb%20c.gguf?download=true").unwrap(), "a_b_c.gguf");
        for bad in ["https://h/", "https://h/x.bin", "https://h/.gguf", "https://h/..%2f.gguf"] {
            assert!(file_name_of(bad).is_err(), "{bad}");
        }
    }
}
